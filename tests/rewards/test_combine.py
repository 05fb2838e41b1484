"""Rewards made of rewards. That they are rewards themselves is checked in tests/test_rewards.py."""

import math
from collections.abc import Sequence
from typing import final

import pytest
import torch
from torch import Tensor

from rewards.base import Images, Reward
from rewards.combine import Dimension, Normalised, Weighted


@final
class Constant(Reward):
    """Given scores for every image."""

    differentiable = False

    def __init__(self, **scores: float) -> None:
        self.dimensions = tuple(scores)
        self._scores = torch.tensor(list(scores.values()))

    def preprocess(self, image: Tensor) -> Tensor:
        return image + 1

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        return self._scores.repeat(len(images), 1)


@final
class Brightness(Reward):
    """The mean of all pixels."""

    dimensions = ("brightness",)
    differentiable = True

    def preprocess(self, image: Tensor) -> Tensor:
        return image

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        return torch.stack([image.mean() for image in images])[:, None]


IMAGES = torch.stack([torch.full((3, 2, 2), 0.25), torch.full((3, 2, 2), 0.75)])


def test_a_dimension_is_its_column() -> None:
    reward = Dimension(Constant(a=1.0, b=2.0, c=3.0), "b")
    assert (reward.dimensions, reward.differentiable) == (("b",), False)
    assert reward(IMAGES, ["", ""]).tolist() == [[2.0], [2.0]]
    assert torch.equal(reward.preprocess(IMAGES[0]), IMAGES[0] + 1)


def test_an_unknown_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="no dimension 'd'; choose one of a, b"):
        Dimension(Constant(a=1.0, b=2.0), "d")


def test_normalised_scores_have_the_given_statistics() -> None:
    reward = Normalised(Constant(a=1.0, b=2.0), mean=[0.5, 4.0], sd=[0.25, 2.0])
    assert reward(IMAGES, ["", ""]).tolist() == [[2.0, -1.0]] * 2
    assert reward.dimensions == ("a", "b")
    assert torch.equal(reward.preprocess(IMAGES[0]), IMAGES[0] + 1)


@pytest.mark.parametrize(
    ("mean", "sd"),
    [
        ([0.0], [1.0]),
        ([0.0, 0.0], [1.0]),
        ([0.0, math.nan], [1.0, 1.0]),
        ([0.0, 0.0], [1.0, 0.0]),
        ([0.0, 0.0], [1.0, math.inf]),
    ],
)
def test_impossible_statistics_are_refused(mean: list[float], sd: list[float]) -> None:
    with pytest.raises(ValueError, match="2 dimensions|finite"):
        Normalised(Constant(a=1.0, b=2.0), mean, sd)


def test_a_weighted_reward_is_the_weighted_sum() -> None:
    reward = Weighted([(Constant(a=10.0), 0.5), (Brightness(), -4.0)])
    assert reward(IMAGES, ["", ""]).tolist() == [[4.0], [2.0]]
    assert reward.dimensions == ("overall",)


def test_a_weighted_reward_is_differentiable_if_all_parts_are() -> None:
    assert Weighted([(Brightness(), 1.0), (Brightness(), 2.0)]).differentiable
    assert not Weighted([(Brightness(), 1.0), (Constant(a=1.0), 2.0)]).differentiable


def test_parts_may_differ_in_precision() -> None:
    scores = Weighted([(Constant(a=1.0), 1.0), (Brightness(), 1.0)])(IMAGES.double(), ["", ""])
    assert (scores.dtype, scores.tolist()) == (torch.float64, [[1.25], [1.75]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one part"),
        ([(Constant(a=1.0, b=2.0), 1.0)], r"dimensions a, b; choose one of them, as in NAME\.a"),
        ([(Constant(a=1.0), math.nan)], "Weight nan must be finite"),
    ],
    ids=["none", "two dimensions", "nan"],
)
def test_impossible_sums_are_refused(parts: list[tuple[Reward, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(parts)
