"""Progress on terminals and in pipes."""

import re
import sys
from pathlib import Path

import pytest

from align.log import Log
from align.progress import Lines


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_pipe_is_a_line_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(4000, "train", 1000, clock)
    for _ in range(200):
        clock.now += 0.5
        lines.update(6)
    lines.close()
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "train: 1,060 of 4,000 (26%), 12.0 a second, 4 min 05 s left"
    assert printed[-2] == "train: 2,200 of 4,000 (55%), 12.0 a second, 2 min 30 s left"
    assert printed[-1] == "train: 2,200 of 4,000 (55%), 12.0 a second, after 1 min 40 s"
    assert len(printed) == 20 + 1


def test_a_slow_rate_is_seconds_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(10, "validate", 0, clock)
    for seconds in (4.1, 4.1, 0.1):
        clock.now += seconds
        lines.update()
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "validate: 2 of 10 (20%), 4.1 s each, 33 s left",
        "validate: 3 of 10 (30%), 2.8 s each, after 8 s",
    ]


def test_progress_of_a_finished_phase_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path).progress(5, "train", initial=5):
        pass
    assert capsys.readouterr().err == ""


def test_progress_through_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("align.progress.SECONDS_BETWEEN_LINES", 0)
    with Log(tmp_path).progress(4000, "generate") as progress:
        progress.update(4000)
    assert capsys.readouterr().err.startswith("generate: 4,000 of 4,000 (100%), ")


def test_a_phase_of_a_moment_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path).progress(4, "generate") as progress:
        progress.update(4)
    assert capsys.readouterr().err == ""


def test_progress_ends_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(4, "generate", 0, iter([0.0, 2.0, 3.0]).__next__)
    lines.update()
    lines.close()
    assert capsys.readouterr().err == "generate: 1 of 4 (25%), 3.0 s each, after 3 s\n"


def test_progress_on_a_terminal_is_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Log(tmp_path).progress(10, "train", initial=4) as progress:
        progress.update(6)
    shown = capsys.readouterr().err
    assert "train: 100%" in shown and "10/10" in shown
    assert re.search(r"(it/s|s/it)", shown)
