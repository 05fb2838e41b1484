"""How the remarks of several people on an image become one (arXiv 2312.10240, section 3.2)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray


def disc_map(points: Float[np.ndarray, "point 2"], radius: float, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centre is at most `radius` pixels from a point (x, y); pixel (0, 0) has its centre at 0.5."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    covered = np.zeros((height, width), dtype=bool)
    for column, row in points:
        covered |= (x - column) ** 2 + (y - row) ** 2 <= radius**2
    return covered


def mean_map(
    points: Sequence[Float[np.ndarray, "_ 2"]], radius: float, height: int, width: int
) -> Float[np.ndarray, "h w"]:
    """The heatmap of an image: the share of the people who marked each pixel, by the points of each.

    Raises:
        ValueError: No people.
    """
    if not points:
        raise ValueError("The points of no people came; one or more are needed, of shape (0, 2) for who marks nothing.")
    return np.mean([disc_map(one, radius, height, width) for one in points], axis=0)


def unit_scores(likert: NDArray[np.int_]) -> Float[np.ndarray, " score"]:
    """(s - 1) / 4 of scores from 1 to 5, of shape (person, score), averaged over the people.

    Raises:
        ValueError: A score outside 1 to 5.
    """
    if likert.min() < 1 or likert.max() > 5:
        raise ValueError(f"Scores from {likert.min()} to {likert.max()} came; they must be from 1 to 5.")
    return ((likert - 1) / 4).mean(0)


def majority(clicked: Sequence[Sequence[bool]]) -> list[bool]:
    """Whether more than half of the people clicked each word."""
    return (np.mean(clicked, axis=0) > 0.5).tolist()
