"""Consolidation against loops over pixels, people and words."""

import math
from itertools import product

import numpy as np
import pytest

from rewards.datasets.consolidate import disc_map, majority, mean_map, unit_scores

HEIGHT, WIDTH = 12, 17


def _covered(points: np.ndarray, radius: float) -> np.ndarray:
    """Pixel by pixel: is a point within reach of its centre?"""
    map_ = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for row, column in product(range(HEIGHT), range(WIDTH)):
        map_[row, column] = any(math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius for x, y in points)
    return map_


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.3, 30.0])
def test_heatmap_is_the_share_of_people_with_a_point_in_reach(radius: float) -> None:
    generator = np.random.default_rng(0)
    people = [generator.random((count, 2)) * [WIDTH + 4, HEIGHT + 4] - 2 for count in (4, 0, 2)]
    each = [_covered(points, radius) for points in people]
    for points, expected in zip(people, each, strict=True):
        assert (disc_map(points, radius, HEIGHT, WIDTH) == expected).all()
    found = mean_map(people, radius, HEIGHT, WIDTH)
    np.testing.assert_allclose(found, np.array(each).mean(axis=0))
    assert set(np.round(3 * found.ravel()).tolist()) <= {0, 1, 2, 3}


def test_overlapping_points_of_one_person_count_once() -> None:
    twice = np.array([[5.0, 5.0], [5.5, 5.0]])
    assert mean_map([twice, np.zeros((0, 2))], 2.0, HEIGHT, WIDTH).max() == 0.5


def test_heatmap_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="points of no people"):
        mean_map([], 2.0, HEIGHT, WIDTH)


def test_scores_of_every_three_people() -> None:
    likert = np.array(list(product(range(1, 6), repeat=3)))
    expected = [sum((s - 1) / 4 for s in three) / 3 for three in likert.tolist()]
    assert unit_scores(likert.T).tolist() == pytest.approx(expected)
    assert {round(12 * score, 9) for score in expected} == set(range(13))


@pytest.mark.parametrize("likert", [[[0, 3]], [[3, 6]]])
def test_scores_off_the_scale_are_refused(likert: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="must be from 1 to 5"):
        unit_scores(np.array(likert))


def test_a_word_is_misaligned_if_more_than_half_say_so() -> None:
    votes = list(product([False, True], repeat=3))
    words = list(zip(*votes, strict=True))  # one word for each way in which three people can vote
    assert majority(words) == [sum(word) >= 2 for word in votes]
    assert majority([[True, True], [False, True]]) == [False, True]
