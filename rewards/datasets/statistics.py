"""What rich feedback is like: how scores lie, how people agree, how much they marked (arXiv 2312.10240, 3.4)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rewards.datasets.rich_feedback import RichFeedback
from rewards.rahf.network import HEATMAPS, SCORES

BINS = 10
"""Of the histogram of a score in [0, 1], equally wide; 1.0 is in the last."""


@dataclass(frozen=True)
class RichStatistics:
    """Of the rows that were read.

    Attributes:
        images: How many.
        prompts: How many different ones.
        scores: By name, the images in each bin of [0, 1].
        means: By name, the mean score.
        empty: By map, the images of which nothing is marked.
        heat: By map, the mean share of the pixels that somebody marked, where anybody did.
        words: All words of all images.
        misaligned: Those that are misaligned.
        spread: By score, how many images have each difference of highest and lowest rating, 0 to 4; empty where the
            data set does not say what each person gave.
    """

    images: int
    prompts: int
    scores: Mapping[str, Int[np.ndarray, " bin"]]
    means: Mapping[str, float]
    empty: Mapping[str, int]
    heat: Mapping[str, float]
    words: int
    misaligned: int
    spread: Mapping[str, Int[np.ndarray, " 5"]]


def rich_statistics(rows: Iterable[RichFeedback]) -> RichStatistics:
    """Read all rows, one at a time, without their images.

    Raises:
        ValueError: No rows.
    """
    prompts, scores, heat, words, spreads = set[str](), [], [], [], []
    for row in rows:
        prompts.add(row.prompt)
        scores.append([row.scores[name] for name in SCORES])
        heat.append([_marked(row, name) for name in HEATMAPS])
        words.append((len(row.words), sum(row.misaligned)))
        if len(row.ratings) > 1:
            spreads.append([_spread(row, name) for name in SCORES])
    if not scores:
        raise ValueError("There is no good row to tell of.")
    values, hot = np.array(scores), np.array(heat)
    return RichStatistics(
        images=len(values),
        prompts=len(prompts),
        scores={name: _histogram(values[:, column]) for column, name in enumerate(SCORES)},
        means={name: float(values[:, column].mean()) for column, name in enumerate(SCORES)},
        empty={name: int((hot[:, column] == 0).sum()) for column, name in enumerate(HEATMAPS)},
        heat={name: _mean_of_marked(hot[:, column]) for column, name in enumerate(HEATMAPS)},
        words=sum(count for count, _ in words),
        misaligned=sum(bad for _, bad in words),
        spread=_counted(np.array(spreads)) if spreads else {},
    )


def _marked(row: RichFeedback, name: str) -> float:
    return float((row.heatmaps[name]() > 0).float().mean())


def _spread(row: RichFeedback, name: str) -> int:
    given = [rating[name] for rating in row.ratings]
    return max(given) - min(given)


def _histogram(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " bin"]:
    return np.histogram(values, bins=BINS, range=(0, 1))[0]


def _mean_of_marked(shares: Float[np.ndarray, " n"]) -> float:
    return float(shares[shares > 0].mean()) if (shares > 0).any() else 0.0


def _counted(spreads: Int[np.ndarray, "n score"]) -> dict[str, Int[np.ndarray, " 5"]]:
    return {name: np.bincount(spreads[:, column], minlength=5) for column, name in enumerate(SCORES)}
