"""Several processes (gloo, on a CPU) make the same candidates and the same selection as one, and train alike."""

from pathlib import Path

import numpy as np
import pytest

from tests.recipes.launching import losses_of, on_sandbox, processes_of, run_in

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


def run(folder: Path, processes: int, batch_size: int) -> Path:
    """A run on the sandbox."""
    settings = SETTINGS | {"train.train_batch_size": batch_size, "output_dir": folder}
    run_in(processes, on_sandbox("filter_finetune", settings, folder.parent))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One process with a batch of four, and two with two each."""
    folder = tmp_path_factory.mktemp("runs")
    return run(folder / "one", 1, 4), run(folder / "two", 2, 2)


def test_two_processes_really_ran(runs: tuple[Path, Path]) -> None:
    assert [processes_of(folder) for folder in runs] == [1, 2]


def test_candidates_scores_and_selection_are_the_same(runs: tuple[Path, Path]) -> None:
    one, two = runs
    files = [path.relative_to(one) for kind in ("samples", "scores", "selected") for path in (one / kind).rglob("*.*")]
    assert len([file for file in files if file.suffix == ".png"]) == 16 + 4
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes(), file


def test_the_training_is_the_same_but_for_rounding(runs: tuple[Path, Path]) -> None:
    one, two = map(losses_of, runs)
    assert [*one] == [*two] == [*range(1, 7)]
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-4)
