"""Selection: hand-made scores, and brute force over all subsets as the oracle of best-of-k."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from align.select import (
    best_of_k_by_prompt,
    best_of_n,
    levels_by_rank,
    quantile_threshold,
    softmax_nonpreferred,
    softmax_preferred,
)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where annotations are not checked and our own errors must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def random_scores(prompts: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(prompts, n, generator=torch.Generator().manual_seed(seed))


def test_best_of_n_keeps_the_best_of_each_prompt() -> None:
    selection = best_of_n(torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]]))
    assert selection.kept == ((0, 1), (1, 0))
    assert (selection.threshold, selection.prompts, selection.prompts_below_threshold) == (None, 2, 0)


def test_best_of_n_agrees_with_argmax_and_topk() -> None:
    scores = random_scores(50, 8)
    assert best_of_n(scores).kept == tuple(enumerate(scores.argmax(dim=1).tolist()))
    top = scores.topk(3, dim=1).indices.tolist()
    assert best_of_n(scores, 3).kept == tuple((prompt, sample) for prompt in range(50) for sample in top[prompt])


def test_threshold_is_inclusive_and_counts_dropped_prompts() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.4, 0.2, 0.3], [0.5, 0.6, 0.0]])
    selection = best_of_n(scores, per_prompt=2, threshold=0.5)
    assert selection.kept == ((0, 1), (0, 2), (2, 1), (2, 0))
    assert (selection.threshold, selection.prompts, selection.prompts_below_threshold) == (0.5, 3, 1)


def test_ties_go_to_the_lowest_index() -> None:
    scores = torch.zeros(3, 64)
    assert best_of_n(scores).kept == ((0, 0), (1, 0), (2, 0))
    assert best_of_n(scores, 2).kept[:2] == ((0, 0), (0, 1))


def test_threshold_that_keeps_nothing_says_which_would() -> None:
    scores = torch.tensor([[0.1, 0.25], [0.3, 0.35], [0.0, 0.1], [0.5, 0.4]])
    with pytest.raises(ValueError, match="keeps nothing") as error:
        best_of_n(scores, threshold=2.0)
    highest = scores.double().max().item()
    assert f"at most {highest!r} keeps something" in str(error.value)
    assert len(best_of_n(scores, threshold=highest).kept) == 1
    assert "0.25 keeps half of the 4 prompts" in str(error.value)


@pytest.mark.parametrize("per_prompt", [0, 3, -1])
def test_per_prompt_outside_the_samples_is_refused(per_prompt: int) -> None:
    with pytest.raises(ValueError, match=f"per_prompt is {per_prompt}; it must be between 1 and the 2 samples"):
        best_of_n(torch.zeros(4, 2), per_prompt)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    scores = torch.zeros(4, 3)
    scores[2, 1] = value
    for function in (best_of_n, best_of_k_by_prompt):
        with pytest.raises(ValueError, match="1 of 12 scores are not finite, the first at prompt 2, sample 1"):
            function(scores)


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one or more of each"):
        best_of_n(torch.zeros(0, 4))


@pytest.mark.parametrize("q", [0.0, 0.3, 0.9, 1.0])
def test_quantile_threshold_agrees_with_torch(q: float) -> None:
    scores = random_scores(20, 7).double()
    assert quantile_threshold(scores, q) == pytest.approx(torch.quantile(scores, q).item(), abs=1e-12)


def test_the_highest_quantile_keeps_exactly_the_best() -> None:
    scores = random_scores(20, 7)
    selection = best_of_n(scores, threshold=quantile_threshold(scores, 1.0))
    assert len(selection.kept) == 1
    assert scores[selection.kept[0]] == scores.max()
    assert selection.prompts_below_threshold == 19


def test_quantile_refuses_what_is_no_share_and_what_is_no_score() -> None:
    with pytest.raises(ValueError, match="The quantile is 90.0; it must be between 0 and 1"):
        quantile_threshold(torch.zeros(3), 90.0)
    with pytest.raises(ValueError, match="all finite"):
        quantile_threshold(torch.tensor([0.0, math.nan]), 0.5)


def best_of_all_subsets(scores: Tensor, judge: Tensor) -> Tensor:
    """E[judge of the best of k] of each prompt, by trying every subset; ties to the lowest index."""
    n = scores.shape[1]
    means = torch.zeros(len(scores), n, dtype=torch.float64)
    for prompt, k in itertools.product(range(len(scores)), range(1, n + 1)):
        worth = [
            judge[prompt, max(subset, key=lambda i: (scores[prompt, i].item(), -i))].item()
            for subset in itertools.combinations(range(n), k)
        ]
        means[prompt, k - 1] = sum(worth) / len(worth)
    return means


@pytest.mark.parametrize("n", [1, 2, 7])
def test_best_of_k_agrees_with_all_subsets(n: int) -> None:
    scores, judge = random_scores(3, n), random_scores(3, n, seed=1)
    for found, worth in ((best_of_k_by_prompt(scores), scores), (best_of_k_by_prompt(scores, judge), judge)):
        torch.testing.assert_close(found, best_of_all_subsets(scores, worth), rtol=0, atol=1e-6)


def test_best_of_k_with_ties_agrees_with_all_subsets() -> None:
    scores, judge = random_scores(4, 6).round(), random_scores(4, 6, seed=1)
    assert len(scores.unique()) < scores.numel()
    oracle = best_of_all_subsets(scores, judge)
    torch.testing.assert_close(best_of_k_by_prompt(scores, judge), oracle, rtol=0, atol=1e-6)


def test_expected_best_of_k_averages_over_prompts() -> None:
    scores, judge = random_scores(3, 5), random_scores(3, 5, seed=1)
    oracle = best_of_all_subsets(scores, judge).mean(dim=0)
    torch.testing.assert_close(best_of_k_by_prompt(scores, judge).mean(0), oracle, rtol=0, atol=1e-6)


def test_expected_best_of_k_is_stable_for_many_samples() -> None:
    """Uniform ranks: E[max of k out of 1..n without replacement] = k (n + 1) / (k + 1)."""
    n = 1200  # C(1200, 600) is beyond float64
    k = torch.arange(1, n + 1, dtype=torch.float64)
    ranks = k[torch.randperm(n, generator=torch.Generator().manual_seed(0))][None]
    torch.testing.assert_close(best_of_k_by_prompt(ranks).mean(0), k * (n + 1) / (k + 1), rtol=1e-9, atol=0)
    assert (best_of_k_by_prompt(torch.full((1, n), 0.3, dtype=torch.float64)).mean(0) - 0.3).abs().max() < 1e-12


def test_a_judge_of_other_images_is_refused(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"judge has shape \(2, 3\) and scores \(2, 4\)"):
        best_of_k_by_prompt(torch.zeros(2, 4), torch.zeros(2, 3))


def test_a_flat_list_of_scores_is_refused(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\); they must be \(prompts, samples\)"):
        best_of_n(torch.zeros(4))


class TestOutstanding:
    """The selector of HPS, against a loop that does what the paper says, with nothing but the standard library."""

    @staticmethod
    def brute_force(values: list[float], scale: float, margin: float) -> int | None:
        """The place that is chosen of one group, if any."""
        powers = [math.exp(scale * (value - max(values))) for value in values]
        shares = [power / sum(powers) for power in powers]
        best = max(range(len(values)), key=lambda place: (shares[place], -place))
        return best if shares[best] > margin / len(values) else None

    def test_ten_thousand_random_groups_agree_with_brute_force(self) -> None:
        generator = random.Random(0)
        sizes = [generator.randint(1, 12) for _ in range(10_000)]
        values = [round(generator.gauss(0.2, 0.02), generator.choice((2, 9))) for size in sizes for _ in range(size)]
        numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
        order = list(range(len(values)))
        generator.shuffle(order)
        scores, groups = torch.tensor(values, dtype=torch.float64)[order], torch.tensor(numbers)[order]
        best, worst = (choose(scores, groups, scale=100.0) for choose in (softmax_preferred, softmax_nonpreferred))
        members: dict[int, list[int]] = {}
        for place, group in enumerate(groups.tolist()):
            members.setdefault(group, []).append(place)
        expected: tuple[list[int], list[int]] = ([], [])
        for places in (places for places in members.values() if len(places) >= 4):
            for side, sign in zip(expected, (1, -1), strict=True):
                chosen = self.brute_force([sign * scores[place].item() for place in places], 100.0, 2.0)
                if chosen is not None:
                    side.append(places[chosen])
        assert (list(best.images), list(worst.images)) == expected
        large = sum(size >= 4 for size in sizes)
        assert 1000 < len(best.images) < large and 1000 < len(worst.images) < large
        assert softmax_preferred(scores, groups, scale=100.0) == best
        assert softmax_nonpreferred(scores, groups, scale=100.0) == worst

    def test_nothing_need_stand_out_at_the_top(self) -> None:
        scores = torch.tensor([1.0, 1.0, 1.0, 0.9], dtype=torch.float64)
        found = softmax_nonpreferred(scores, torch.zeros(4, dtype=torch.long), scale=100.0)
        assert found.images == (3,)
        assert found.shares[0] == pytest.approx(math.exp(10) / (math.exp(10) + 3))

    def test_at_most_one_of_each_side_of_a_prompt_and_the_first_of_equals(self) -> None:
        scores, groups = torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0, -9.0]), torch.tensor([7] * 8)
        best, worst = (choose(scores, groups, scale=1.0) for choose in (softmax_preferred, softmax_nonpreferred))
        assert (best.images, worst.images) == ((1,), (7,))
        assert best.shares == pytest.approx(scores.softmax(0)[1:2].tolist())

    def test_the_scale_is_that_of_the_softmax(self) -> None:
        scores, groups = torch.tensor([0.20, 0.21, 0.19, 0.22]), torch.zeros(4, dtype=torch.long)
        with pytest.raises(ValueError, match=r"No image is preferred: of 1 prompts.* A margin below 1.015 keeps"):
            softmax_preferred(scores, groups, scale=1.0)
        assert softmax_preferred(scores, groups, scale=100.0).images == (3,)
        assert softmax_preferred(scores, groups, scale=1.0, margin=1.0).images == (3,)

    @pytest.mark.parametrize(
        ("scores", "groups", "options", "message"),
        [
            (
                [1.0, 2.0, 3.0],
                [0, 0, 1],
                {},
                "The largest of 2 prompts has 2 images, and a group needs min_group_size = 4",
            ),
            ([1.0, math.nan], [0, 0], {}, "1 of 2 scores are not finite"),
            ([1.0, 2.0], [0, 0, 0], {}, "give one score and the number of its prompt"),
            ([0.0, 0.0, 0.0, 9.0], [0] * 4, {"margin": 3.9}, "No image is non-preferred.* A margin below"),
            ([0.3] * 4, [0] * 4, {}, "stands out most has 1 times an even share.* Raise the scale; if .* all equal"),
            ([1.0, 2.0], [0, 0], {"scale": 0.0}, "they must be above 0"),
        ],
    )
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_what_gives_nothing_is_an_error(
        self, scores: list[float], groups: list[int], options: dict[str, float], message: str
    ) -> None:
        settings: Any = {"scale": 1.0} | options
        with pytest.raises(ValueError, match=message):
            softmax_nonpreferred(torch.tensor(scores), torch.tensor(groups), **settings)


def test_levels_are_the_fractions_of_each_prompts_images() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        groups = torch.randint(5, (40,), generator=generator)
        scores = torch.randint(6, (40,), generator=generator).double()
        found = levels_by_rank(scores, groups, 4, min_group_size=5)
        for group in groups.unique():
            images = (groups == group).nonzero()[:, 0].tolist()
            order = sorted(images, key=lambda image: (scores[image].item(), image))
            for rank, image in enumerate(order):
                assert found[image] == (int(rank / len(order) * 4) if len(order) >= 5 else -1)


def test_levels_need_images() -> None:
    with pytest.raises(ValueError, match="need 4"):
        levels_by_rank(torch.rand(3), torch.zeros(3, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="levels is 1"):
        levels_by_rank(torch.rand(4), torch.zeros(4, dtype=torch.long), 1)
