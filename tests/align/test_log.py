"""The record of a run, its W&B mirror (offline, nothing outside the folder), and progress on terminals and in pipes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from align.log import Log, _Lines, read_metrics  # pyright: ignore[reportPrivateUsage]


def steps(folder: Path, phase: str) -> list[int]:
    return [row["step"] for row in read_metrics(folder) if row["phase"] == phase]


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    with Log(tmp_path / "run") as log:
        log.metrics(1, {"loss": 0.5, "images": 12}, "train")
        log.metrics(0, {"gold": 0.25}, "evaluate")
    first, second = (json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert list(first) == ["time", "phase", "step", "loss", "images"]
    assert (first["phase"], first["step"], first["loss"], first["images"]) == ("train", 1, 0.5, 12)
    assert (second["phase"], second["step"], second["gold"]) == ("evaluate", 0, 0.25)
    assert first["time"].endswith("+00:00")


def test_resumed_run_continues_the_record_without_duplicates(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for step in range(1, 8):
        log.metrics(step, {"loss": 1 / step}, "train")
    log.metrics(9, {"gold": 0.5}, "watch")
    log = Log(tmp_path)
    log.rewind("train", 5)
    for step in range(6, 10):
        log.metrics(step, {"loss": 1 / step}, "train")
    assert steps(tmp_path, "train") == list(range(1, 10))
    assert steps(tmp_path, "watch") == [9]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewind_before_anything_was_logged_does_nothing(tmp_path: Path) -> None:
    Log(tmp_path).rewind("train", 0)
    assert list(tmp_path.iterdir()) == []


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.metrics(1, {"loss": 1.0}, "train")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01", "pha')
    assert steps(tmp_path, "train") == [1]
    log = Log(tmp_path)
    log.metrics(2, {"loss": 1.0}, "train")
    assert steps(tmp_path, "train") == [1, 2]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"phase": "train", "step": 1}\n{"phase"\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is not valid JSON"):
        Log(tmp_path).rewind("train", 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_metrics_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="train/loss is (nan|inf) at step 3; metrics must be finite"):
        Log(tmp_path).metrics(3, {"grad_norm": 1.0, "loss": value}, "train")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_names_of_the_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is named 'step', which the record uses itself"):
        Log(tmp_path).metrics(3, {"step": 1.0}, "train")


def test_only_the_main_process_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with Log(folder, ["wandb"], is_main=False) as log:
        log.metrics(1, {"loss": 0.5}, "train")
        log.images(1, {"a": (torch.zeros(3, 2, 2), "caption")}, "train")
        log.rewind("train", 0)
        with log.progress(3, "train") as progress:
            progress.update(3)
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown tracker in report_to: wanbd. Known: wandb"):
        Log(tmp_path, ["wanbd"])


WANDB_FOLDERS = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")


class FakeRun:
    """What W&B was told."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeRun, list[dict[str, Any]]]:
    """A W&B with a login, whose `init` records its arguments and gives the fake run."""
    run, calls = FakeRun(), []

    def init(**arguments: Any) -> FakeRun:
        folders = {name: os.environ.get(name) for name in WANDB_FOLDERS}
        calls.append(arguments | folders)
        return run

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("wandb.login", Mock(return_value=True))
    monkeypatch.setattr("wandb.init", init)
    return run, calls


def test_wandb_mirrors_under_the_axis_of_each_phase(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]
) -> None:
    run, calls = fake_wandb
    with Log(tmp_path, ["wandb"], "name", {"rank": 4}) as log:
        log.metrics(1, {"loss": 0.5}, "train")
        log.metrics(0, {"gold": 0.25}, "evaluate")
    assert run.logged == [{"train/loss": 0.5, "train/step": 1}, {"evaluate/gold": 0.25, "evaluate/step": 0}]
    assert run.axes == {"train/*": "train/step", "evaluate/*": "evaluate/step"}
    assert run.exit_code == 0
    assert (calls[0]["name"], calls[0]["config"], calls[0]["resume"]) == ("name", {"rank": 4}, "allow")
    assert steps(tmp_path, "train") == [1]


def test_wandb_resumes_under_the_same_id(tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]) -> None:
    for folder in ("run", "run", "other"):
        Log(tmp_path / folder, ["wandb"]).close()
    first, again, other = (arguments["id"] for arguments in fake_wandb[1])
    assert first == again != other


def test_wandb_run_ends_as_failed_after_an_error(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]
) -> None:
    with pytest.raises(KeyError), Log(tmp_path, ["wandb"]):
        raise KeyError
    assert fake_wandb[0].exit_code == 1


def test_wandb_environment_is_left_as_it_was(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    before = dict(os.environ)
    log = Log(tmp_path, ["wandb"])
    call = fake_wandb[1][0]
    assert call["WANDB_DIR"] == str(tmp_path)
    assert call["WANDB_CONFIG_DIR"] is None  # online, the login and the server that the user configured must be found
    log.close()
    log.close()
    assert dict(os.environ) == before


def test_offline_all_wandb_folders_are_inside_the_run(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    Log(tmp_path, ["wandb"]).close()
    assert all(Path(fake_wandb[1][0][name]).is_relative_to(tmp_path) for name in WANDB_FOLDERS)


def test_wandb_images_carry_their_captions(tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]) -> None:
    pixels = torch.zeros(3, 4, 5)
    pixels[0, 1, 2] = 1.0
    with Log(tmp_path, ["wandb"]) as log:
        log.images(7, {"sample": (pixels, "a red dot")}, "watch")
    logged = fake_wandb[0].logged[0]
    image = logged["watch/sample"]
    assert (logged["watch/step"], image._caption, image.image.size) == (7, "a red dot", (5, 4))
    assert image.image.getpixel((2, 1)) == (255, 0, 0)


def test_missing_login_says_what_to_do(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.login", Mock(return_value=False))
    before = dict(os.environ)
    with pytest.raises(ValueError, match="no W&B login was found.*wandb login.*WANDB_MODE=offline"):
        Log(tmp_path, ["wandb"])
    assert dict(os.environ) == before
    assert fake_wandb[1] == []


OFFLINE_RUN = """
import sys, torch
from pathlib import Path
from align.log import Log
for attempt in range(2):
    with Log(Path(sys.argv[1]), ["wandb"], "name", {"rank": 4}) as log:
        log.rewind("train", 1)
        log.metrics(2, {"loss": 0.5}, "train")
        log.images(2, {"sample": (torch.rand(3, 8, 8), "a caption")}, "train")
"""


def test_offline_wandb_writes_nothing_outside_the_run_folder(tmp_path: Path) -> None:
    outside = [tmp_path / name for name in ("home", "here", "temporary")]
    for folder in outside:
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))} | {
        "HOME": str(outside[0]),
        "TMPDIR": str(outside[2]),
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", OFFLINE_RUN, str(tmp_path / "run")]
    subprocess.run(command, cwd=outside[1], env=environment, check=True, capture_output=True, timeout=120)
    assert [path for folder in outside for path in folder.rglob("*")] == []
    run_id = json.loads((tmp_path / "run/wandb.json").read_text())["id"]
    runs = list((tmp_path / "run/wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert runs
    assert list((tmp_path / "run/wandb").glob("offline-run-*/files/media/images/train/sample_*.png"))
    assert steps(tmp_path / "run", "train") == [2]


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    lines = _Lines(400, "train", 100, lambda: now[0])
    for _ in range(200):
        now[0] += 0.5
        lines.update()
    lines.close()
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "train: 120 of 400 (30%), 2 min 20 s left"
    assert printed[-1] == "train: 300 of 400 (75%), after 1 min 40 s"
    assert len(printed) == 10 + 1


def test_progress_of_a_finished_phase_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path).progress(5, "train", initial=5):
        pass
    assert capsys.readouterr().err == ""


def test_progress_through_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path).progress(4000, "generate") as progress:
        progress.update(4000)
    assert capsys.readouterr().err == "generate: 4,000 of 4,000 (100%), after 0 s\n"


def test_progress_on_a_terminal_is_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Log(tmp_path).progress(10, "train", initial=4) as progress:
        progress.update(6)
    shown = capsys.readouterr().err
    assert "train: 100%" in shown and "10/10" in shown
