"""Metrics against brute force."""

import math

import pytest
import torch

from rewards.metrics import choice_accuracy


def _by_breaking_ties(scores: list[list[float]], chosen: list[int]) -> float:
    """The mean over groups of the share of best images that are the chosen one."""
    best = [[index for index, score in enumerate(group) if score == max(group)] for group in scores]
    return sum(ones.count(index) / len(ones) for ones, index in zip(best, chosen, strict=True)) / len(chosen)


def test_choice_accuracy_with_ties_is_that_of_a_random_tie_break() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (200, 5), generator=generator).float()
    chosen = torch.randint(0, 5, (200,), generator=generator)
    expected = _by_breaking_ties(scores.tolist(), chosen.tolist())
    assert choice_accuracy(scores, chosen) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.3


def test_choice_accuracy_counts_the_chosen_maximum() -> None:
    assert choice_accuracy(torch.tensor([[0.1, 0.3], [0.1, 0.3], [0.3, 0.1]]), torch.tensor([1, 0, 0])) == 2 / 3


def test_a_constant_score_gets_chance_level() -> None:
    assert choice_accuracy(torch.zeros(7, 4), torch.arange(7) % 4) == 0.25


def test_absent_images_do_not_win() -> None:
    scores, present = torch.tensor([[0.1, 0.2, 0.9]]), torch.tensor([[True, True, False]])
    assert choice_accuracy(scores, torch.tensor([1]), present) == 1.0
    assert choice_accuracy(scores, torch.tensor([1])) == 0.0


@pytest.mark.parametrize("scores", [torch.zeros(0, 3), torch.tensor([[0.1, math.nan]])], ids=["empty", "nan"])
def test_nothing_to_judge_is_refused(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="non-empty and free of NaN"):
        choice_accuracy(scores, torch.zeros(len(scores), dtype=torch.long))
