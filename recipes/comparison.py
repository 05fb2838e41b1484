"""Two folders of images against each other: the scores of pairs in, rows and what moved out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluate import Row, compare
from recipes.pairing import Pairing


@dataclass(frozen=True)
class Move:
    """What became of one prompt, from A to B: means over its pairs with scores.

    `pairs` are their positions, and `middle` is the one of them whose difference is the middle one: the largest would
    be the luck of one image.
    """

    prompt: str
    mean_a: float
    mean_b: float
    difference: float
    pairs: Sequence[int]
    middle: int


@dataclass(frozen=True)
class Compared:
    """One dimension of one reward over the pairs.

    Attributes:
        row: The comparison; A is its "base", B its "tuned".
        scores: Of each pair in A and in B; NaN where there is none.
        over: What the interval resamples: "prompts", or "images" where there is one prompt.
        unscored: Pairs without a finite score, which are left out.
        moves: Every prompt with scores, in the order of the pairs.
    """

    row: Row
    scores: Float[Tensor, "pair 2"]
    over: str
    unscored: int
    moves: Sequence[Move]

    @property
    def name(self) -> str:
        """The reward and its dimension."""
        return f"{self.row.reward} {self.row.dimension}"

    @property
    def gained(self) -> list[Move]:
        """The prompts whose mean rose, the largest rise first."""
        return sorted((move for move in self.moves if move.difference > 0), key=lambda move: -move.difference)

    @property
    def lost(self) -> list[Move]:
        """The prompts whose mean fell, the largest fall first."""
        return sorted((move for move in self.moves if move.difference < 0), key=lambda move: move.difference)


def compare_pairs(
    reward: str,
    dimension: str,
    first: Float[Tensor, " image_a"],
    second: Float[Tensor, " image_b"],
    pairing: Pairing,
    seed: int,
) -> Compared:
    """Compare the scores of two folders, NaN where an image has none; positive differences are for the second.

    With one prompt the interval resamples its pairs, and speaks of that prompt alone.

    Raises:
        ValueError: No pair, or a single one, has finite scores.
    """
    places = torch.tensor(pairing.pairs)
    scores = torch.stack([first[places[:, 0]], second[places[:, 1]]], dim=1).double()
    kept = scores.isfinite().all(1)
    groups = torch.tensor(pairing.groups)[kept]
    if kept.sum() < 2:
        raise ValueError(
            f"{int(kept.sum())} of {len(kept)} pairs have finite scores by {reward} {dimension}; two or more are "
            "needed to compare. Give more images, or another reward."
        )
    over = "prompts" if len(groups.unique()) > 1 else "images"
    units = groups if over == "prompts" else torch.arange(len(groups))
    row = compare(reward, dimension, scores[kept, 0], scores[kept, 1], units, seed)
    moves = _moves(scores.numpy(), kept.numpy(), pairing)
    return Compared(row, scores, over, int((~kept).sum()), moves)


def _moves(scores: Float[np.ndarray, "pair 2"], kept: np.ndarray, pairing: Pairing) -> list[Move]:
    of_prompt: dict[int, list[int]] = {}
    for position in np.flatnonzero(kept).tolist():
        of_prompt.setdefault(pairing.groups[position], []).append(position)
    moves: list[Move] = []
    for group, positions in of_prompt.items():
        mean_a, mean_b = scores[positions].mean(axis=0).tolist()
        order = np.argsort(scores[positions, 1] - scores[positions, 0], kind="stable")
        middle = positions[int(order[(len(positions) - 1) // 2])]
        moves.append(Move(pairing.prompts[group], mean_a, mean_b, mean_b - mean_a, positions, middle))
    return moves
