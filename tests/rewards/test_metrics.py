"""Metrics against brute force."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from rewards.metrics import choice_accuracy, plcc, srcc, word_counts, word_scores


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


def test_correlations_agree_with_scipy() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 13, 300) / 12  # as in RichHF-18K, with many ties
    predicted = true + generator.normal(0, 0.4, 300)
    assert plcc(predicted, true) == pytest.approx(stats.pearsonr(predicted, true)[0], abs=1e-12)
    assert srcc(predicted, true) == pytest.approx(stats.spearmanr(predicted, true)[0], abs=1e-12)
    assert srcc(np.exp(9 * predicted), true) == srcc(predicted, true)


def test_float32_scores_that_hardly_vary_keep_their_correlation() -> None:
    true = np.linspace(0, 1, 1000).astype(np.float32)
    predicted = (1000 + true).astype(np.float32)
    assert plcc(predicted, true) == pytest.approx(1, abs=1e-6)


def test_a_constant_has_no_correlation() -> None:
    assert math.isnan(plcc(np.full(5, 0.1), np.arange(5.0)))
    assert math.isnan(srcc(np.arange(5.0), np.full(5, 0.1)))


@pytest.mark.parametrize("true", [np.zeros(2), np.array([0.1, 0.2, math.nan]), np.zeros(0)], ids=["two", "nan", "none"])
def test_scores_without_a_partner_are_refused(true: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"3 predicted and {len(true)} true scores"):
        plcc(np.zeros(3), true)


def _by_definition(predicted: list[list[bool]], true: list[list[bool]]) -> list[float]:
    """Precision, recall and F1 of all words, by counting; NaN without a denominator."""
    pairs = [pair for p, t in zip(predicted, true, strict=True) for pair in zip(p, t, strict=True)]
    called, bad, right = sum(p for p, _ in pairs), sum(t for _, t in pairs), sum(p and t for p, t in pairs)
    precision, recall = right / called if called else math.nan, right / bad if bad else math.nan
    harmonic = 2 / (1 / precision + 1 / recall) if right else (0.0 if called or bad else math.nan)
    return [precision, recall, harmonic]


def test_words_of_every_pair_of_labels_agree_with_counting() -> None:
    labels = [list(bits) for bits in product([False, True], repeat=3)]
    predicted, true = [p for p in labels for _ in labels], [t for _ in labels for t in labels]
    counts = word_counts(predicted, true)
    np.testing.assert_allclose(word_scores(counts.sum(0)), _by_definition(predicted, true))
    each = [_by_definition([p], [t]) for p, t in zip(predicted, true, strict=True)]
    np.testing.assert_allclose(word_scores(counts), each)
    assert np.isnan(each).any() and np.equal(each, 1).any()


def test_the_mean_over_prompts_is_not_the_f1_of_the_corpus() -> None:
    """One prompt found whole, one of three words missed, one with nothing to find."""
    true = [[True], [True, True, True, False], [False, False]]
    predicted = [[True], [False, False, False, False], [False, False]]
    counts = word_counts(predicted, true)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 3], [0, 0, 0]]
    assert word_scores(counts.sum(0)).tolist() == [1, 0.25, 0.4]
    assert np.nan_to_num(word_scores(counts)).mean(0).tolist() == pytest.approx([1 / 3] * 3)
    assert np.nanmean(word_scores(counts), 0).tolist() == pytest.approx([1, 1 / 2, 1 / 2])


def test_rahf_s_published_f1_is_that_of_its_precision_and_recall() -> None:
    """62.9 and 33.0 give 43.3 (arXiv 2312.10240), from counts in that proportion."""
    right = 62.9 * 33.0
    counts = np.round(np.array([right, right * (100 / 62.9 - 1), right * (100 / 33.0 - 1)])).astype(int)
    assert word_scores(counts).tolist() == pytest.approx([0.629, 0.330, 0.433], abs=1e-3)


@pytest.mark.parametrize("predicted", [[[True]], [[True, False], [True]], []], ids=["fewer", "other words", "none"])
def test_labels_of_other_words_are_refused(predicted: list[list[bool]]) -> None:
    true = [[True, False], [True, True]] if predicted else []
    with pytest.raises(ValueError, match="label the same words"):
        word_counts(predicted, true)
