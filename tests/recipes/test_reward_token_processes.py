"""Two processes (gloo, on a CPU) tie the same images to the same token as one: embedding, LoRA, control, comparison."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.launching import losses_of, on_sandbox, processes_of, run_in
from tests.recipes.test_reward_token_kill import SETTINGS, TENSORS

STEPS = 3 + 4 + 4
"""Of the embedding, the LoRA and the control."""
Runs = tuple[Path, Path]


def run(folder: Path, processes: int, batch_size: int) -> Path:
    """A run on the sandbox."""
    settings = SETTINGS | {"train.train_batch_size": batch_size, "output_dir": folder}
    run_in(processes, on_sandbox("reward_token", settings, folder.parent))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One process with a batch of four, and two with two each."""
    folder = tmp_path_factory.mktemp("runs")
    return run(folder / "one", 1, 4), run(folder / "two", 2, 2)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / "evaluation" / f"{name}.json").read_text())


def test_two_processes_really_ran(runs: Runs) -> None:
    assert [processes_of(folder) for folder in runs] == [1, 2]


def test_images_scores_and_selection_are_the_same(runs: Runs) -> None:
    one, two = runs
    kinds = ("samples", "scores", "selected", "ordinary")
    files = [path.relative_to(one) for kind in kinds for path in (one / kind).rglob("*.*")]
    chosen = len((one / "selected/metadata.jsonl").read_text().splitlines())
    assert len([file for file in files if file.suffix == ".png"]) == 16 + chosen + 4
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes(), file


def test_the_trainings_are_the_same_but_for_rounding(runs: Runs) -> None:
    one, two = map(losses_of, runs)
    assert [*one] == [*two] == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-4)


@pytest.mark.parametrize("file", TENSORS)
def test_so_is_what_they_learned(file: str, runs: Runs) -> None:
    one, two = (load_file(folder / file) for folder in runs)
    assert one.keys() == two.keys()
    # the other half of a LoRA is nearly what it began as, and would hide a difference
    names = [name for name in sorted(one) if ".lora.down." not in name]
    first, second = (torch.cat([found[name].flatten() for name in names]) for found in (one, two))
    assert (second - first).norm() < 1e-3 * first.norm()


@pytest.mark.parametrize("name", ["result", "guidance"])
def test_and_what_the_comparison_says(name: str, runs: Runs) -> None:
    one, two = (rows(folder, name) for folder in runs)
    assert len(one) == len(two) > 0
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert theirs[key] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), key
