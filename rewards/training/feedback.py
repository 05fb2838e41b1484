"""Batches of rich feedback, for training any critic: a pure function of the batch's number.

Real photos may be mixed in as negatives: nothing is wrong with them, so their maps are empty; nobody scored them, so
their scores are NaN, which the losses leave out. Detectors trained on generated images alone fire on every hand; the
authors of DiffDoctor found photos to help against that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.datasets.rich_feedback import RichFeedback
from rewards.image import resize
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.rahf.words import mark_words
from rewards.training.augment import augment
from rewards.training.rahf import RahfBatch

Image = Float[Tensor, "3 _ _"]


class Photo(NamedTuple):
    """A real photo, with its caption if it has one."""

    image: Callable[[], Image]
    text: str


@dataclass(frozen=True)
class FeedbackBatches:
    """Rows of rich feedback, drawn at random.

    Attributes:
        rows: What people said.
        preprocess: The critic's.
        size: Pixels along a side of the maps that are learned from.
        batch_size: Images of a batch.
        seed: Of the draws and of the augmentation.
        augmented: Whether images and maps are changed at random, see `rewards.training.augment`.
        photos: Negatives; empty for none.
        negatives: The share of a batch that is drawn from the photos, in [0, 1).
    """

    rows: Sequence[RichFeedback]
    preprocess: Callable[[Image], Image]
    size: int
    batch_size: int
    seed: int
    augmented: bool = True
    photos: Sequence[Photo] = ()
    negatives: float = 0.0

    def __call__(self, number: int) -> RahfBatch:
        """Batch `number`; safe in threads."""
        generator = np.random.default_rng((self.seed, number))
        examples = [self._example(generator) for _ in range(self.batch_size)]
        return collate(examples)

    def _example(self, generator: np.random.Generator) -> "Example":
        is_photo = bool(self.photos) and generator.random() < self.negatives
        source = self.photos if is_photo else self.rows
        chosen = source[int(generator.integers(len(source)))]
        changed = generator if self.augmented else None
        return example(chosen, self.preprocess, self.size, changed)


class Example(NamedTuple):
    """One image of a `RahfBatch`."""

    pixels: Image
    prompt: str
    marked: str
    scores: Float[Tensor, " 4"]
    heatmaps: Float[Tensor, "2 size size"]


def example(
    source: RichFeedback | Photo,
    preprocess: Callable[[Image], Image],
    size: int,
    generator: np.random.Generator | None = None,
) -> Example:
    """What a critic learns from one image, with maps of `size` pixels; changed at random by a generator, if one comes.

    The network reads the prompt as it is, as the critic will; it learns to write the words without the punctuation
    between them. (The first author's code leaves punctuation out of both.)
    """
    image, maps = source.image(), _maps(source)
    if generator is not None:
        image, maps = augment(image, maps, generator)
    fitted = maps if maps.shape[-2:] == (size, size) else resize(maps, size, size, "bilinear").clamp(0, 1)
    if isinstance(source, Photo):
        return Example(preprocess(image), source.text, source.text, torch.full((len(SCORES),), torch.nan), fitted)
    scores = torch.tensor([source.scores[name] for name in SCORES])
    return Example(preprocess(image), source.prompt, mark_words(source.words, source.misaligned), scores, fitted)


def collate(examples: Sequence[Example]) -> RahfBatch:
    """A batch of single images."""
    pixels, prompts, marked, scores, heatmaps = zip(*examples, strict=True)
    return RahfBatch(torch.stack(pixels), prompts, marked, torch.stack(scores), torch.stack(heatmaps))


def _maps(source: RichFeedback | Photo) -> Float[Tensor, "2 _ _"]:
    if isinstance(source, Photo):
        return torch.zeros(len(HEATMAPS), 1, 1)
    return torch.stack([source.heatmaps[name]() for name in HEATMAPS])
