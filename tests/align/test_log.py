"""The record of a run; its mirrors are tested in `test_trackers.py`."""

import json
import math
from pathlib import Path

import pytest
import torch

from align.log import Log, read_metrics


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
    assert list(tmp_path.iterdir()) == [] and read_metrics(tmp_path) == []


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
    with Log(folder, ["wandb", "tensorboard"], is_main=False) as log:
        log.metrics(1, {"loss": 0.5}, "train")
        log.images(1, {"a": (torch.zeros(3, 2, 2), "caption")}, "train")
        log.table(1, "b", [{"image": torch.zeros(3, 2, 2), "score": 1.0}], "train")
        log.artifact(folder / "lora", "lora", "model")
        log.rewind("train", 0)
        with log.progress(3, "train") as progress:
            progress.update(3)
    assert not folder.exists()
    assert capsys.readouterr() == ("", "")


def test_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown tracker in report_to: wanbd. Known: tensorboard, wandb"):
        Log(tmp_path, ["wanbd", "tensorboard"])


def test_without_trackers_pictures_tables_and_artifacts_go_nowhere(tmp_path: Path) -> None:
    with Log(tmp_path / "run") as log:
        log.images(1, {"a": (torch.zeros(3, 2, 2), "caption")}, "train")
        log.table(1, "b", [{"score": 1.0}], "train")
        log.artifact(Path(__file__), "test", "code")
    assert list((tmp_path / "run").iterdir()) == []


def test_rows_of_a_table_must_have_the_same_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Row 2 of table watch/pairs has the columns a, c; the first row has a, b."):
        Log(tmp_path).table(1, "pairs", [{"a": 1, "b": 2.0}, {"a": 1, "c": "x"}], "watch")


def test_artifact_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Artifact 'lora' is to be kept from .*missing, where nothing is."):
        Log(tmp_path).artifact(tmp_path / "missing", "lora", "model")
