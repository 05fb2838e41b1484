"""Paired comparison: closed forms, scipy's bootstrap and distances as oracles, and coverage by simulation."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from jaxtyping import config
from scipy import stats
from scipy.spatial.distance import pdist
from torch import Tensor

from align.evaluate import compare, diagonal_margins, diversity, interval_of, mean_interval, recovered_gap


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where annotations are not checked and our own errors must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def paired_scores(prompts: int, images: int, seed: int, difference: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with a strong common part per prompt, and a gain that also varies by prompt."""
    generator = torch.Generator().manual_seed(seed)
    level, gain = torch.randn(2, prompts, 1, generator=generator, dtype=torch.float64)
    base, tuned = level + 0.3 * torch.randn(2, prompts, images, generator=generator, dtype=torch.float64)
    groups = torch.arange(prompts).repeat_interleave(images)
    return base.flatten(), (tuned + difference + 0.3 * gain).flatten(), groups


def test_row_by_hand() -> None:
    base, tuned = torch.tensor([0.0, 0.2, 0.4, 0.4]), torch.tensor([0.5, 0.1, 0.4, 0.8])
    row = compare("gold", "overall", base, tuned, torch.tensor([7, 7, 3, 3]), seed=0)
    assert list(asdict(row)) == [
        "reward", "dimension", "n", "base_mean", "tuned_mean", "difference", "ci_low", "ci_high", "win_rate",
    ]  # fmt: skip
    assert (row.reward, row.dimension, row.n) == ("gold", "overall", 4)
    assert (row.base_mean, row.tuned_mean) == pytest.approx((0.25, 0.45))
    assert row.difference == pytest.approx(0.2)
    assert row.win_rate == (0.5 + 0.75) / 2  # one win of two; one tie and one win


def test_prompts_count_equally_whatever_their_number_of_images() -> None:
    base, tuned = torch.zeros(5), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    row = compare("gold", "overall", base, tuned, torch.tensor([0, 1, 1, 1, 1]), seed=0)
    assert row.difference == 0.5


def test_interval_agrees_with_scipy() -> None:
    base, tuned, groups = paired_scores(60, 4, seed=1)
    row = compare("gold", "overall", base, tuned, groups, seed=0)
    per_prompt = (tuned - base).reshape(60, 4).mean(dim=1).numpy()
    result = stats.bootstrap((per_prompt,), np.mean, method="percentile", rng=np.random.default_rng(1))
    oracle = result.confidence_interval
    width = oracle.high - oracle.low
    assert (row.ci_low, row.ci_high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)
    assert row.difference == pytest.approx(per_prompt.mean())


def test_comparison_is_deterministic_and_ignores_the_order_of_pairs() -> None:
    base, tuned, groups = paired_scores(30, 4, seed=2)
    row = compare("gold", "overall", base, tuned, groups, seed=5)
    assert compare("gold", "overall", base, tuned, groups, seed=5) == row
    assert compare("gold", "overall", base, tuned, groups, seed=6) != row
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = compare("gold", "overall", base[order], tuned[order], groups[order], seed=5)
    assert tuple(asdict(shuffled).values())[2:] == pytest.approx(tuple(asdict(row).values())[2:])


def test_interval_covers_the_truth_95_times_in_100() -> None:
    """With a gain that varies by prompt, resampling images instead of prompts would cover in about 75 %."""
    rows = [compare("r", "d", *paired_scores(40, 8, seed=seed), seed=seed, resamples=400) for seed in range(400)]
    covered = sum(row.ci_low <= 0.1 <= row.ci_high for row in rows) / 400
    assert 0.91 <= covered <= 0.98


def test_identical_models_tie() -> None:
    base, _, groups = paired_scores(10, 2, seed=0)
    row = compare("gold", "overall", base, base, groups, seed=0)
    assert (row.difference, row.ci_low, row.ci_high, row.win_rate) == (0, 0, 0, 0.5)


def test_many_prompts_are_resampled_in_blocks() -> None:
    base, tuned, groups = paired_scores(20_000, 1, seed=3)
    row = compare("gold", "overall", base, tuned, groups, seed=0, resamples=1000)
    error = (tuned - base).std().item() / math.sqrt(20_000)
    assert (row.ci_high - row.ci_low) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bad_pairs_are_refused() -> None:
    ones, groups = torch.ones(4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="tuned scores hold 1 of 4 values that are not finite"):
        compare("gold", "overall", ones, torch.tensor([1.0, 2.0, math.nan, 0.0]), groups, seed=0)
    with pytest.raises(ValueError, match="two prompts or more, 1 came"):
        compare("gold", "overall", ones, ones, torch.zeros(4, dtype=torch.long), seed=0)


def base_and_tuned(prompts: int = 50, n: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(prompts, 1, generator=generator, dtype=torch.float64)
    judge = level + torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    selector = judge + 0.5 * torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    tuned = level + 0.5 + torch.randn(prompts, 4, generator=generator, dtype=torch.float64)
    return judge, selector, tuned


def test_recovered_gap_by_hand() -> None:
    judge = torch.tensor([[0.0, 1.0, 0.2], [0.4, 0.0, 0.2]])
    selector = torch.tensor([[0.0, 5.0, 0.0], [3.0, 1.0, 3.0]])  # picks 1, and 0 (a tie goes to the lowest index)
    result = recovered_gap(judge, selector, torch.tensor([[0.6], [0.3]]), seed=0)
    assert (result.gap, result.gain) == pytest.approx((0.4, 0.15))
    assert result.share == pytest.approx(0.375)


def test_tuned_model_that_is_best_of_n_recovers_all() -> None:
    judge, selector, _ = base_and_tuned()
    best = judge.gather(1, selector.argmax(dim=1, keepdim=True))
    result = recovered_gap(judge, selector, best, seed=0)
    assert (result.share, result.ci_low, result.ci_high) == pytest.approx((1, 1, 1))
    assert recovered_gap(judge, selector, judge, seed=0).share == pytest.approx(0)


def test_recovered_gap_agrees_with_scipy() -> None:
    judge, selector, tuned = base_and_tuned()
    result = recovered_gap(judge, selector, tuned, seed=0)
    mean = judge.mean(dim=1)
    gain = (tuned.mean(dim=1) - mean).numpy()
    gap = (judge.gather(1, selector.argmax(dim=1, keepdim=True))[:, 0] - mean).numpy()

    def share(gain: np.ndarray, gap: np.ndarray, axis: int) -> np.ndarray:
        return gain.mean(axis=axis) / gap.mean(axis=axis)

    oracle = stats.bootstrap(
        (gain, gap),
        share,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert result.ci_low is not None and result.ci_high is not None
    width = oracle.high - oracle.low
    assert (result.ci_low, result.ci_high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)


def test_where_best_of_n_gains_nothing_there_is_no_share() -> None:
    judge, _, tuned = base_and_tuned()
    result = recovered_gap(judge, -judge, tuned, seed=0)
    assert result.gap < 0
    assert (result.share, result.ci_low, result.ci_high) == (None, None, None)


def test_scores_of_other_images_are_refused(unchecked_shapes: None) -> None:
    judge, selector, tuned = base_and_tuned()
    with pytest.raises(ValueError, match=r"judge_base has shape \(50, 16\), selector_base \(50, 15\)"):
        recovered_gap(judge, selector[:, 1:], tuned, seed=0)
    with pytest.raises(ValueError, match="4 base scores, 3 tuned scores and 4 prompt indices"):
        compare("gold", "overall", torch.ones(4), torch.ones(3), torch.arange(4), seed=0)


def test_mean_interval_agrees_with_scipy_in_every_column() -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 4)
    means, lows, highs = mean_interval(values, seed=0)
    torch.testing.assert_close(means, values.mean(dim=0))
    result = stats.bootstrap((values.numpy(),), np.mean, axis=0, method="percentile", rng=np.random.default_rng(1))
    oracle = result.confidence_interval
    assert (np.abs(lows.numpy() - oracle.low) < 0.05 * (oracle.high - oracle.low)).all()
    assert (np.abs(highs.numpy() - oracle.high) < 0.05 * (oracle.high - oracle.low)).all()


def test_mean_interval_of_differences_is_that_of_the_comparison() -> None:
    base, tuned, groups = paired_scores(30, 1, seed=4)
    row = compare("gold", "overall", base, tuned, groups, seed=5)
    found = torch.cat(mean_interval((tuned - base)[:, None], seed=5)).tolist()
    assert found == pytest.approx([row.difference, row.ci_low, row.ci_high])


def test_mean_interval_needs_two_prompts_and_finite_values() -> None:
    with pytest.raises(ValueError, match="two prompts or more, 1 came"):
        mean_interval(torch.ones(1, 3), seed=0)
    with pytest.raises(ValueError, match="columns hold 1 of 4 values that are not finite"):
        mean_interval(torch.tensor([[1.0, 2.0], [math.inf, 0.0]]), seed=0)


def test_diversity_agrees_with_the_distances_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(9, 5, generator=generator, dtype=torch.float64) + 1
    groups = torch.tensor([7, 3, 3, 7, 3, 12, 12, 3, 7])
    oracle = [pdist(embeddings[groups == group].numpy(), metric="cosine").mean() for group in (3, 7, 12)]
    assert diversity(embeddings, groups).tolist() == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize(("images", "distance"), [([[1, 0], [5, 0]], 0), ([[1, 0], [0, 2]], 1), ([[1, 0], [-3, 0]], 2)])
def test_diversity_by_hand(images: list[list[int]], distance: float) -> None:
    assert diversity(torch.tensor(images).float(), torch.tensor([4, 4])).tolist() == pytest.approx([distance])


def test_diversity_of_two_models_is_compared_prompt_by_prompt() -> None:
    base, tuned = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.3, 0.4, 0.5])
    row = compare("diversity", "sandbox", base, tuned, torch.arange(3), seed=0)
    assert (row.n, row.win_rate) == (3, 0)
    assert (row.difference, row.ci_low, row.ci_high) == pytest.approx((-0.1, -0.1, -0.1))


def test_diversity_needs_two_images_of_each_prompt(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match="Prompt 9 came with one image; a distance needs two. Generate two or more"):
        diversity(torch.ones(3, 2), torch.tensor([1, 9, 1]))
    with pytest.raises(ValueError, match="3 embeddings and 2 prompt indices"):
        diversity(torch.ones(3, 2), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="embeddings hold 1 of 4 values that are not finite"):
        diversity(torch.tensor([[1.0, math.nan], [1.0, 0.0]]), torch.tensor([1, 1]))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_interval_of_a_correlation_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    x, noise = generator.normal(size=(2, 80))
    y = x + noise
    found = interval_of(correlation, [x, y], np.arange(80), seed=0)
    oracle = stats.bootstrap(
        (x, y), correlation, paired=True, vectorized=False, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.ci_low is not None and found.ci_high is not None
    width = oracle.high - oracle.low
    assert (found.ci_low, found.ci_high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)


def test_interval_of_the_mean_is_that_of_prompts_drawn_whole() -> None:
    """Every one of the 3^3 draws, by hand: prompts of one, two and three rows, out of order."""
    values, groups = np.array([1.0, 10.0, 2.0, 20.0, 3.0, 30.0]), np.array([9, 4, 9, 7, 9, 4])
    rows = [values[groups == group] for group in (4, 7, 9)]
    means = [np.concatenate(draw).mean() for draw in product(rows, repeat=3)]
    seen: list[float] = []

    def mean(drawn: np.ndarray) -> float:
        seen.append(float(drawn.mean()))
        return seen[-1]

    found = interval_of(mean, [values], groups, seed=0, resamples=4000)
    assert found.value == 11
    assert set(np.round(seen, 9)) == set(np.round(means, 9))
    shares = [np.mean(np.isclose(seen[1:] if seen[0] == 11 else seen[:-1], value)) for value in set(np.round(means, 9))]
    expected = [np.mean(np.isclose(means, value)) for value in set(np.round(means, 9))]
    assert shares == pytest.approx(expected, abs=0.03)


def test_interval_of_a_difference_of_correlations_knows_that_both_saw_the_same_images() -> None:
    generator = np.random.default_rng(0)
    true, shared, own = generator.normal(size=(3, 300))
    a, b = true + shared, true + shared + 0.3 * own

    def gap(a: np.ndarray, b: np.ndarray, true: np.ndarray) -> float:
        return correlation(a, true) - correlation(b, true)

    paired = interval_of(gap, [a, b, true], np.arange(300), 0, 2000)
    alone = interval_of(correlation, [a, true], np.arange(300), 0, 2000)
    assert paired.value == gap(a, b, true)
    assert paired.ci_low is not None and paired.ci_high is not None and alone.ci_low is not None and alone.ci_high
    assert paired.ci_high - paired.ci_low < 0.5 * (alone.ci_high - alone.ci_low)


def test_interval_of_is_deterministic() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))

    def spread(rows: np.ndarray) -> float:
        return float(rows.std())

    found = [interval_of(spread, [x], np.arange(40) // 2, seed, resamples=200) for seed in (5, 5, 6)]
    assert found[0] == found[1] != found[2]


def test_a_statistic_that_some_resamples_lack_has_no_interval() -> None:
    """One row of eight counts, so that some draws have none."""
    found = interval_of(np.nanmax, [np.array([0.5, *[-np.inf] * 7])], np.arange(8), seed=0, resamples=100)
    assert (found.value, found.ci_low, found.ci_high) == (0.5, None, None)


def test_interval_of_needs_two_prompts_and_as_many_rows(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match="two prompts or more, 1 came"):
        interval_of(correlation, [np.ones(3), np.ones(3)], np.zeros(3, dtype=int), seed=0)
    with pytest.raises(ValueError, match=r"Arrays of \[3, 2\] rows and 3 prompt indices"):
        interval_of(correlation, [np.ones(3), np.ones(2)], np.arange(3), seed=0)


def test_margins_are_the_diagonal_minus_the_best_of_the_rest() -> None:
    effects = torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    found = diagonal_margins(effects, seed=1, resamples=500)
    generator, means = np.random.default_rng(1), effects.numpy().mean(axis=0)
    draws = generator.integers(7, size=(500, 7))
    for row, one in enumerate(found):
        others = [column for column in range(3) if column != row]
        assert one.value == pytest.approx(means[row, row] - means[row, others].max())
        resampled = [effects.numpy()[draw].mean(axis=0) for draw in draws]
        margins = [table[row, row] - table[row, others].max() for table in resampled]
        assert (one.ci_low, one.ci_high) == pytest.approx(tuple(np.quantile(margins, (0.025, 0.975))))


def test_margins_need_a_square() -> None:
    with pytest.raises(ValueError, match="2 measures came with 3 treatments"):
        diagonal_margins(torch.zeros(4, 2, 3), seed=0)
