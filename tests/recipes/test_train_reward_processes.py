"""Two processes (gloo, on a CPU) train a critic as one does, though both find data that must be joined first."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.feedback_files import save_start, write_photos, write_unjoined
from tests.recipes.launching import options, processes_of, run_in

SETTINGS = {
    "train.train_batch_size": 3,
    "train.max_train_steps": 6,
    "train.checkpointing_steps": 3,
    "train.validation_steps": 3,
    "train.lr_warmup_steps": 1,
    "train.learning_rate": 1e-3,
    "captions.max_train_steps": 2,
    "device": "cpu",
}


def run(folder: Path, processes: int, accumulation: int) -> Path:
    """A training on data of its own, with its captions first."""
    data, start = write_unjoined(folder / "data"), save_start(folder / "start")
    paths = {"data": data, "network.rahf": start, "captions.train_data_dir": write_photos(folder / "photos")}
    settings = SETTINGS | paths | {"train.gradient_accumulation_steps": accumulation, "output_dir": folder / "out"}
    run_in(processes, ["recipes/train_reward.py", "rahf", *options(settings)])
    return folder / "out"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One process that adds up two batches a step, and two processes with one each: the same images a step."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        (folder / name).mkdir()
    return run(folder / "one", 1, 2), run(folder / "two", 2, 1)


def rows(folder: Path, phase: str) -> list[dict[str, Any]]:
    """What the run's record has of a phase."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def test_two_processes_really_ran(runs: tuple[Path, Path]) -> None:
    assert [processes_of(folder) for folder in runs] == [1, 2]


@pytest.mark.parametrize(("stage", "steps"), [("captions", 2), (".", 6)])
def test_the_losses_are_the_same_and_written_once(stage: str, steps: int, runs: tuple[Path, Path]) -> None:
    one, two = (rows(folder / stage, "train") for folder in runs)
    assert [row["step"] for row in one] == [row["step"] for row in two] == list(range(1, steps + 1))
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], rtol=1e-4)


def test_so_are_the_looks_at_the_dev_split_and_the_weights(runs: tuple[Path, Path]) -> None:
    one, two = (rows(folder, "validation") for folder in runs)
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 3, 6]
    np.testing.assert_allclose([row["selection"] for row in two], [row["selection"] for row in one], rtol=1e-3)
    first, second = (load_file(folder / "reward/model.safetensors") for folder in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5)


def test_the_images_were_joined_once_for_both(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        images = folder.parent / "data/images"
        assert len(list(images.glob("*.jpg"))) == 18 and not list(images.glob(".*"))
