"""Images of held-out prompts and their scores, and the comparison of two models by them, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluate import RecoveredGap, Row, compare, recovered_gap
from align.generate import generate
from align.log import Log
from align.model import Sampling, TextToImage
from align.samples import SampleStore
from recipes.score import run as score_all
from rewards.base import Reward


@dataclass(frozen=True)
class Judged:
    """Images, `n` of each prompt, with their scores by the name of each reward."""

    store: SampleStore
    scores: Mapping[str, Float[Tensor, "image dimension"]]
    n: int

    def first(self, reward: str) -> Float[Tensor, "prompt n"]:
        """The first dimension of a reward."""
        return self.scores[reward][:, 0].reshape(-1, self.n)


def judge(
    model: TextToImage,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    n: int,
    folder: Path,
    seed: int,
    batch_sizes: tuple[int, int],
    sampling: Sampling,
    log: Log,
) -> Judged:
    """Generate `n` images of each prompt and score them, in batches of `batch_sizes` (images made, images scored).

    The seeds depend on `seed`, the prompt and the sample's number alone, so two models are judged by the same ones.
    """
    store = generate(
        model, prompts, n, folder / "samples", seed, batch_sizes[0], sampling, log, f"images {folder.name}"
    )
    return Judged(store, score_all(store, rewards, folder / "scores", batch_sizes[1], model.device, log), n)


def compare_all(base: Judged, tuned: Judged, dimensions: Mapping[str, Sequence[str]], seed: int) -> list[Row]:
    """A row for each dimension of each reward, in the order of `dimensions`."""
    count = len(next(iter(base.scores.values())))
    groups = torch.arange(count) // base.n
    return [
        compare(name, dimension, base.scores[name][:, column], tuned.scores[name][:, column], groups, seed)
        for name, names in dimensions.items()
        for column, dimension in enumerate(names)
    ]


def recovered(base: Judged, tuned: Judged, selector: str, judged_by: str, seed: int) -> RecoveredGap:
    """The recovered share of the gap between the base mean and the base best of `n`, chosen by the selector."""
    return recovered_gap(base.first(judged_by), base.first(selector), tuned.first(judged_by), seed)
