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

    def utility(self, gold: Gold) -> float:
        """What the annotator would feel for a picture if they made no error, in [0, 1]."""
        weights = np.array([self.alignment, self.plausibility, self.aesthetics])
        return float(weights @ (gold.alignment, gold.plausibility, gold.aesthetics) / weights.sum())


ANNOTATORS = (
    Annotator(alignment=0.5, plausibility=0.35, aesthetics=0.15, noise=0.05),
    Annotator(alignment=0.35, plausibility=0.5, aesthetics=0.15, noise=0.08),
    Annotator(alignment=0.4, plausibility=0.35, aesthetics=0.25, noise=0.06),
)


def choose(golds: Sequence[Gold], annotator: Annotator, generator: np.random.Generator) -> int:
    """The index of the picture that an annotator likes best among those shown for one prompt."""
    utilities = np.array([annotator.utility(gold) for gold in golds])
    return int(np.argmax(utilities + generator.normal(0, annotator.noise, len(golds))))


def choices(groups: Sequence[Sequence[Gold]], seed: int) -> NDArray[np.int_]:
    """Every annotator's choice in every group of pictures, shape (group, annotator)."""
    generator = np.random.default_rng(seed)
    return np.array([[choose(group, annotator, generator) for annotator in ANNOTATORS] for group in groups])
