"""A training of a critic that is killed with SIGKILL at several moments ends with the bits of one that was not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.feedback_files import save_start, write_unjoined
from tests.recipes.launching import kill_when, options, start


def _trained(step: int) -> Callable[[Path], bool]:
    def reached(folder: Path) -> bool:
        record = folder / "metrics.jsonl"
        return record.exists() and f'"phase": "train", "step": {step},' in record.read_text()

    return reached


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the best weights are written": lambda folder: any(folder.glob(".best.tmp")) or (folder / "best").exists(),
    "it trains between two checkpoints": _trained(5),
    "the reward is written": lambda folder: any(folder.glob(".reward.tmp")) or (folder / "reward").exists(),
}
"""What shows that a moment has come; checkpoints are at 3, 6 and 8 steps, looks at 0, 4 and 8."""

SETTINGS = {
    "train.max_train_steps": 8,
    "train.checkpointing_steps": 3,
    "train.validation_steps": 4,
    "train.train_batch_size": 2,
    "train.lr_warmup_steps": 1,
    "train.learning_rate": 1e-3,
    "train.ema_decay": 0.5,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of `align train-reward` but for its folder."""
    folder = tmp_path_factory.mktemp("feedback")
    paths = {"data": write_unjoined(folder / "data"), "network.rahf": save_start(folder / "start")}
    return ["-m", "recipes.cli", "train-reward", "rahf", *options(SETTINGS | paths)]


def test_a_training_killed_at_each_moment_ends_with_the_same_bits(command: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    beside = start(command, whole)  # they share the data, which one of them joins
    for reached in MOMENTS.values():
        kill_when(start(command, killed), lambda reached=reached: reached(killed))
    assert start(command, killed).wait() == 0 and beside.wait() == 0
    for file in ("reward/model.safetensors", "reward/align_reward.json", "best/selection.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not [path.name for path in killed.iterdir() if path.name.endswith(".tmp")]
