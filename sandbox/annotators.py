"""Simulated people: three annotators with their own taste and noise choose the best of n pictures for a prompt.

An annotator sees the gold scores of a picture as utility: each weighs them differently, and errs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandbox.measure import Gold


@dataclass(frozen=True)
class Annotator:
    """One person: how much each score counts for them, and the standard deviation of their error on the mean."""

    alignment: float
    plausibility: float
    aesthetics: float
    noise: float

    def utility(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """What they would feel for pictures if they made no error, in [0, 1]; scores as `scores_of` gives them."""
        weights = np.array([self.alignment, self.plausibility, self.aesthetics])
        return scores @ weights / weights.sum()


ANNOTATORS = (
    Annotator(alignment=0.5, plausibility=0.35, aesthetics=0.15, noise=0.05),
    Annotator(alignment=0.35, plausibility=0.5, aesthetics=0.15, noise=0.08),
    Annotator(alignment=0.4, plausibility=0.35, aesthetics=0.25, noise=0.06),
)


def scores_of(golds: Sequence[Gold]) -> NDArray[np.float64]:
    """What an annotator sees of pictures: (n, 3), alignment, plausibility and aesthetics."""
    return np.array([(gold.alignment, gold.plausibility, gold.aesthetics) for gold in golds])


def choose(scores: NDArray[np.float64], annotator: Annotator, generator: np.random.Generator) -> int:
    """The index of the picture that an annotator likes best among those shown for one prompt, by (n, 3) scores."""
    return int(np.argmax(annotator.utility(scores) + generator.normal(0, annotator.noise, len(scores))))


def choices(groups: NDArray[np.float64], seed: int) -> NDArray[np.int_]:
    """Every annotator's choice in every group: from scores (group, n, 3) to indices (group, annotator)."""
    generator = np.random.default_rng(seed)
    return np.array([[choose(group, annotator, generator) for annotator in ANNOTATORS] for group in groups])
