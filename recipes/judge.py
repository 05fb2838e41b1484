"""Images of prompts and their scores, and the comparison of two models by them, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align.evaluate import RecoveredGap, Row, compare, diversity, recovered_gap
from align.generate import generate
from align.log import Log
from align.model import Sampling, TextToImage
from align.report.page import DIVERSITY
from align.samples import SampleRow, SampleStore
from align.state import read_json, write_json
from recipes.images import Item, sample_items
from recipes.score import score
from recipes.scoring import Engine, Problems
from rewards.base import Embedder, Reward


@dataclass(frozen=True)
class Judged:
    """Images, `n` of each prompt, with their scores by the name of each reward."""

    store: SampleStore
    rows: Sequence[SampleRow]
    scores: Mapping[str, Float[Tensor, "image dimension"]]
    n: int

    def first(self, reward: str) -> Float[Tensor, "prompt n"]:
        """The first dimension of a reward."""
        return self.scores[reward][:, 0].reshape(-1, self.n)


@dataclass(frozen=True)
class Judge:
    """Makes images and scores them, always in the same way.

    Attributes:
        model: As it is at the time of the call, LoRA included.
        rewards: By name.
        sampling: How images are drawn.
        batch_sizes: Images made at once, images scored at once.
        log: Shows the progress.
        accelerator: The processes that share the work.
    """

    model: TextToImage
    rewards: Mapping[str, Reward]
    sampling: Sampling
    batch_sizes: tuple[int, int]
    log: Log
    accelerator: Accelerator

    def __call__(self, prompts: Sequence[str], names: Sequence[str], n: int, folder: Path, seed: int) -> Judged:
        """Generate `n` images of each prompt into `folder/samples`, and score them by the rewards called `names`.

        The seeds depend on `seed`, the prompt and the sample's number alone, so two models are judged by the same ones.
        """
        making, scoring = self.batch_sizes
        store = generate(
            self.model,
            prompts,
            n,
            folder / "samples",
            seed,
            making,
            self.sampling,
            self.log,
            self.accelerator,
            f"images {folder.name}",
        )
        place, device = folder / "scores", self.model.device
        items = sample_items(store)
        engines = {name: Engine(name, self.rewards[name], device, scoring) for name in names}
        scores = {name: score(items, engine, place, self.log, self.accelerator) for name, engine in engines.items()}
        for name, engine in engines.items():
            check_all(items, scores[name], engine.problems)
        return Judged(store, store.rows(), scores, n)

    def compare(self, base: Judged, tuned: Judged, seed: int) -> list[Row]:
        """A row for each dimension of each reward that scored `base`, then one for diversity, where it can be told."""
        groups = torch.arange(len(base.rows)) // base.n
        rows = [
            compare(name, dimension, base.scores[name][:, column], tuned.scores[name][:, column], groups, seed)
            for name in base.scores
            for column, dimension in enumerate(self.rewards[name].dimensions)
        ]
        return rows + self._diversity(base, tuned, seed)

    def _diversity(self, base: Judged, tuned: Judged, seed: int) -> list[Row]:
        """By the first reward that embeds images, hold-outs before the one that selected."""
        embedders = {name: reward for name in base.scores if isinstance(reward := self.rewards[name], Embedder)}
        if not embedders or base.n < 2:
            return []
        name, embedder = next(iter(embedders.items()))
        before, after = (self._distances(name, embedder, judged) for judged in (base, tuned))
        return [compare(DIVERSITY, name, before, after, torch.arange(len(before)), seed)]

    @torch.no_grad()
    def _distances(self, name: str, embedder: Embedder, judged: Judged) -> Float[Tensor, " prompt"]:
        """Measured once, and kept beside the images."""
        path, size = judged.store.folder.parent / "diversity.json", self.batch_sizes[1]
        made_by = {"embedder": name, "model": judged.rows[0].model}
        kept = read_json(path) if path.exists() else {}
        if not made_by.items() <= kept.items():
            starts = range(0, len(judged.rows), size)
            images = (judged.store.load(judged.rows[start : start + size]).to(self.model.device) for start in starts)
            embeddings = torch.cat([embedder.embed(batch).cpu() for batch in images])
            kept = made_by | {"distances": diversity(embeddings, torch.arange(len(judged.rows)) // judged.n).tolist()}
            write_json(path, kept)
        return torch.tensor(kept["distances"], dtype=torch.float64)


def check_all(items: Sequence[Item], scores: Float[Tensor, "image dimension"], problems: Problems) -> None:
    """Refuse to go on where an image has no score: a selection or a comparison without it would be another one."""
    for item, values in zip(items, scores, strict=True):
        if values.isnan().any():
            reason = problems.get(item.name, "another process says why")
            raise ValueError(
                f"{item.found.name} ({item.text!r}) has no score: {reason}. Mend the reward or the image and run the "
                "same command again: the scores so far are kept."
            )


def recovered(base: Judged, tuned: Judged, selector: str, judged_by: str, seed: int) -> RecoveredGap:
    """The recovered share of the gap between the base mean and the base best of `n`, chosen by the selector."""
    return recovered_gap(base.first(judged_by), base.first(selector), tuned.first(judged_by), seed)
