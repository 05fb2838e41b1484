"""Several processes (gloo, on a CPU) make the same candidates and the same selection as one, and train alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SETTINGS = {
    "samples_per_prompt": 4,
    "sampling.num_inference_steps": 2,
    "sampling.batch_size": 4,
    "select.per_prompt": 1,
    "train.max_train_steps": 6,
    "train.checkpointing_steps": 3,
    "num_validation_prompts": 2,
    "evaluate.samples_per_prompt": 2,
    "evaluate.batch_size": 4,
    "lora.rank": 2,
    "device": "cpu",
}
LAUNCH = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def run(folder: Path, processes: int, batch_size: int) -> Path:
    """A run on the sandbox, with an even global batch."""
    shapes = ("circle", "square", "triangle", "star")
    for name, colour in (("train", "red"), ("validation", "blue")):
        lines = [f"a large {colour} {shape} on a grey background" for shape in shapes]
        (folder.parent / f"{name}.txt").write_text("\n".join(lines) + "\n")
    several = ["--multi_gpu"] if processes > 1 else []
    launch = ["-m", "accelerate.commands.launch", *several, "--num_processes", str(processes), *LAUNCH]
    config = ["recipes/filter_finetune.py", "--config", "recipes/configs/filter_finetune/sandbox.yaml"]
    settings = SETTINGS | {"train.train_batch_size": batch_size}
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    prompts = [
        word for name in ("train", "validation") for word in (f"--{name}_prompts", f"{folder.parent}/{name}.txt")
    ]
    environment = os.environ | {"ALIGN_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launch, *config, *options, *prompts, "--output_dir", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One process with a batch of four, and two with two each."""
    folder = tmp_path_factory.mktemp("runs")
    return run(folder / "one", 1, 4), run(folder / "two", 2, 2)


def test_two_processes_really_ran(runs: tuple[Path, Path]) -> None:
    counts = [json.loads((folder / "environment.json").read_text())["processes"] for folder in runs]
    assert counts == [1, 2]


def test_candidates_scores_and_selection_are_the_same(runs: tuple[Path, Path]) -> None:
    one, two = runs
    files = [path.relative_to(one) for kind in ("samples", "scores", "selected") for path in (one / kind).rglob("*.*")]
    assert len([file for file in files if file.suffix == ".png"]) == 16 + 4
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes(), file


def test_the_training_is_the_same_but_for_rounding(runs: tuple[Path, Path]) -> None:
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
         if row["phase"] == "train"] for folder in runs
    ]  # fmt: skip
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
