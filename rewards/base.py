"""The contracts: what it means to be a reward, and what it means to embed images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Images: TypeAlias = Float[Tensor, "batch 3 h w"] | Sequence[Float[Tensor, "3 _ _"]]
Heatmaps: TypeAlias = Float[Tensor, "batch h w"] | Sequence[Float[Tensor, "_ _"]]


class Reward(ABC):
    """Scores images against prompts. Higher is better, in the reward's published scale.

    Images are RGB floats in [0, 1] on the reward's device. Scores are finite, have the dtype of the reward's parameters
    (half precision promoted to float32), and repeat exactly. The score of an image does not depend on the others of its
    batch; cutting a long list into batches that fit in memory is the caller's work. `tests/test_rewards.py` states all
    this as a test.
    """

    dimensions: tuple[str, ...]
    """Names of the scores, in the order of their columns: `("overall",)`, or several."""

    differentiable: bool
    """Whether gradients flow from the scores to the images."""

    @abstractmethod
    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """What the network sees of an image of any size: the official preprocessing, in torch. Safe in threads."""

    @abstractmethod
    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch dimension"]:
        """Score image i against prompt i, all dimensions in one pass. A sequence of images may mix sizes."""

    def prepare(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """The part of scoring that worker threads can do ahead for each image: none, unless a reward says otherwise.

        What it gives goes to `score_prepared`, not to `__call__`.
        """
        return image

    def score_prepared(
        self, prepared: Sequence[Float[Tensor, "3 _ _"]], prompts: Sequence[str]
    ) -> Float[Tensor, "batch dimension"]:
        """The scores that `__call__` gives, of images that went through `prepare`."""
        same_size = len({image.shape for image in prepared}) == 1
        return self(torch.stack([*prepared]) if same_size else prepared, prompts)

    def remembering_prompts(self) -> AbstractContextManager[None]:
        """While it is open, what was read of a prompt may serve for later batches, too (without gradients only).

        The reward must not be trained or moved meanwhile. One that remembers nothing is right as well.
        """
        return nullcontext()


class PixelReward(Reward):
    """A reward that also takes images which are preprocessed, so that all of that is done ahead."""

    @abstractmethod
    def score_pixels(self, pixels: Float[Tensor, "batch 3 _ _"], prompts: Sequence[str]) -> Float[Tensor, "batch _"]:
        """Score what `preprocess` made of the images, stacked, on any device and in any precision."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch dimension"]:
        """Score image i against prompt i, all dimensions in one pass. A sequence of images may mix sizes."""
        check_pairs(images, prompts)
        return self.score_pixels(torch.stack([self.preprocess(image) for image in images]), prompts)

    def prepare(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """The preprocessing."""
        return self.preprocess(image)

    def score_prepared(
        self, prepared: Sequence[Float[Tensor, "3 _ _"]], prompts: Sequence[str]
    ) -> Float[Tensor, "batch dimension"]:
        """The scores of the stacked images."""
        return self.score_pixels(torch.stack([*prepared]), prompts)


@dataclass(frozen=True)
class Critique:
    """What a critic says about a batch of images.

    Attributes:
        scores: The same as calling the critic gives.
        heatmaps: By the name of the defect, a map of each image in [0, 1] at the image's size, 1 where the defect is
            certain. One tensor if all images of the batch have one size, otherwise a list; `heatmaps[name][i]` is the
            map of image i in both.
        words: Each prompt cut into the words that can be judged.
        misaligned: Beside each word, whether the image fails to show it.
    """

    scores: Float[Tensor, "batch dimension"]
    heatmaps: Mapping[str, Heatmaps]
    words: list[list[str]]
    misaligned: list[list[bool]]


class Critic(Reward):
    """A reward that also says where an image is wrong, and which words of the prompt it misses.

    Like scores, a critique does not depend on the other images of its batch; gradients flow through scores and maps.
    """

    heatmaps: tuple[str, ...]
    """Names of the maps."""

    judges_words: bool = True
    """Whether it says which words an image misses; where not, none is called misaligned."""

    @abstractmethod
    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        """Scores, heatmaps and misaligned words in one pass. A sequence of images may mix sizes."""


class Embedder(ABC):
    """Maps images to vectors in which distance means difference (to measure diversity)."""

    @abstractmethod
    def embed(self, images: Images) -> Float[Tensor, "batch dim"]:
        """One vector of unit length an image."""


def join_maps(maps: Sequence[Float[Tensor, "_ _"]]) -> Heatmaps:
    """The maps of a batch as a `Critique` has them: one tensor if all have one size, otherwise a list."""
    return torch.stack([*maps]) if len({one.shape for one in maps}) == 1 else [*maps]


def check_images(images: Images) -> None:
    """Refuse what is not a picture: a ValueError says what came instead of RGB floats in [0, 1]."""
    if len(images) == 0:
        raise ValueError("No images came; a reward scores one or more.")
    lows, highs = (
        torch.stack([bound(image.detach()) for image in images]).tolist() for bound in (torch.amin, torch.amax)
    )
    for index, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"Image {index} has values from {low:.3g} to {high:.3g}; a reward takes RGB in [0, 1]. "
                "Divide 8-bit values by 255, or map [-1, 1] by (x + 1) / 2."
            )


def check_pairs(images: Images, prompts: Sequence[str]) -> None:
    """Refuse images and prompts that do not pair up, or images out of range."""
    if isinstance(prompts, str) or len(images) != len(prompts):
        came = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"{len(images)} images came with {came}; give a list with one prompt an image.")
    check_images(images)
