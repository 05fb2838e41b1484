"""Simulated people who look closely: points on what is wrong, clicked words and four scores (arXiv 2312.10240, 3.1).

Three annotators see the gold maps, words and scores of a picture, each with a bias of their own and errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandbox.measure import Gold, Map
from sandbox.world import SIZE_PX

SCORES = ("plausibility", "alignment", "aesthetics", "overall")
RADIUS_PX = SIZE_PX / 20
"""The effective radius of a point: 1/20 of the height, as in the paper."""
MAX_POINTS = 12
"""Nobody clicks more often on one picture."""
JITTER_PX = 0.7
"""Standard deviation of a click around what it is meant for."""


@dataclass(frozen=True)
class Rater:
    """One person.

    Attributes:
        bias: Added to every score, in points of the five.
        noise: Standard deviation of the error of a score, in points.
        threshold: The heat from which something is worth a point.
        care: Probability that a misaligned word is clicked.
        slips: Probability that any other word is.
    """

    bias: float
    noise: float
    threshold: float
    care: float
    slips: float


RATERS = (
    Rater(bias=0.0, noise=0.5, threshold=0.4, care=0.95, slips=0.01),
    Rater(bias=-0.2, noise=0.6, threshold=0.3, care=0.9, slips=0.02),
    Rater(bias=0.2, noise=0.55, threshold=0.5, care=0.9, slips=0.01),
)


@dataclass(frozen=True)
class Remarks:
    """What one person says of one picture.

    Attributes:
        scores: From 1 to 5, in the order of `SCORES`.
        implausible: Points as (x, y), in pixels.
        misaligned: Points as (x, y), in pixels.
        words: Beside each word of the caption, whether it was clicked.
    """

    scores: tuple[int, ...]
    implausible: NDArray[np.float64]
    misaligned: NDArray[np.float64]
    words: tuple[bool, ...]


def remarks(gold: Gold, seed: Sequence[int], raters: Sequence[Rater] = RATERS) -> list[Remarks]:
    """What every annotator says of a picture; the same seed gives the same remarks."""
    generator = np.random.default_rng(seed)
    return [_remark(gold, rater, generator) for rater in raters]


def _remark(gold: Gold, rater: Rater, generator: np.random.Generator) -> Remarks:
    chance = np.where(gold.misaligned, rater.care, rater.slips)
    return Remarks(
        tuple(_likert(getattr(gold, name), rater, generator) for name in SCORES),
        _points(gold.implausibility_map, rater, generator),
        _points(gold.misalignment_map, rater, generator),
        tuple((generator.random(len(chance)) < chance).tolist()),
    )


def _likert(score: float, rater: Rater, generator: np.random.Generator) -> int:
    """The score in [0, 1] as a person gives it, from 1 to 5."""
    return int(np.clip(round(1 + 4 * score + rater.bias + generator.normal(0, rater.noise)), 1, 5))


def _points(heat: Map, rater: Rater, generator: np.random.Generator) -> NDArray[np.float64]:
    """Clicks, each on a random one of the hot pixels that no disc covers yet, until none is left."""
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5
    left, points = heat > rater.threshold, list[NDArray[np.float64]]()
    while left.any() and len(points) < MAX_POINTS:
        hot = np.argwhere(left)
        row, column = hot[generator.integers(len(hot))]
        point = np.array([column, row]) + 0.5 + generator.normal(0, JITTER_PX, 2)
        points.append(np.clip(point, 0, SIZE_PX))
        near = (x - point[0]) ** 2 + (y - point[1]) ** 2 <= RADIUS_PX**2
        left &= ~near
        left[row, column] = False
    return np.array(points).reshape(-1, 2)
