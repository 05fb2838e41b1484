"""Rewards made of rewards: one dimension, a fixed scale, a weighted sum. Each wrapper is a reward itself."""

import math
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Images, Reward


@final
class Dimension(Reward):
    """One dimension of a reward that has several.

    Raises:
        ValueError: The reward has no such dimension.
    """

    def __init__(self, reward: Reward, name: str) -> None:
        if name not in reward.dimensions:
            raise ValueError(f"There is no dimension {name!r}; choose one of {', '.join(reward.dimensions)}.")
        self.reward = reward
        self.dimensions = (name,)
        self.differentiable = reward.differentiable
        self._column = reward.dimensions.index(name)

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """As the reward does."""
        return self.reward.preprocess(image)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch 1"]:
        """The chosen column."""
        return self.reward(images, prompts)[:, self._column, None]

    def prepare(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """As the reward does."""
        return self.reward.prepare(image)

    def score_prepared(
        self, prepared: Sequence[Float[Tensor, "3 _ _"]], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """The chosen column."""
        return self.reward.score_prepared(prepared, prompts)[:, self._column, None]

    def remembering_prompts(self) -> AbstractContextManager[None]:
        """As the reward does."""
        return self.reward.remembering_prompts()


@final
class Normalised(Reward):
    """(score - mean) / sd with fixed statistics for each dimension, so that rewards of different scales can be added.

    The statistics are given, never running: a score must mean the same at the end of a training as at its start.

    Raises:
        ValueError: Not one finite mean and one positive sd for each dimension.
    """

    def __init__(self, reward: Reward, mean: Sequence[float], sd: Sequence[float]) -> None:
        count = len(reward.dimensions)
        if len(mean) != count or len(sd) != count:
            raise ValueError(
                f"{len(mean)} means and {len(sd)} sds came for {count} dimensions; give one of each a dimension."
            )
        if not all(map(math.isfinite, mean)) or not all(0.0 < value < math.inf for value in sd):
            raise ValueError(f"Mean {list(mean)} must be finite and sd {list(sd)} positive.")
        self.reward = reward
        self.dimensions = reward.dimensions
        self.differentiable = reward.differentiable
        self._mean, self._sd = tuple(mean), tuple(sd)

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """As the reward does."""
        return self.reward.preprocess(image)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch dimension"]:
        """Standardised scores."""
        return self._standardise(self.reward(images, prompts))

    def prepare(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        """As the reward does."""
        return self.reward.prepare(image)

    def score_prepared(
        self, prepared: Sequence[Float[Tensor, "3 _ _"]], prompts: Sequence[str]
    ) -> Float[Tensor, "batch dimension"]:
        """Standardised scores."""
        return self._standardise(self.reward.score_prepared(prepared, prompts))

    def remembering_prompts(self) -> AbstractContextManager[None]:
        """As the reward does."""
        return self.reward.remembering_prompts()

    def _standardise(self, scores: Float[Tensor, "batch dimension"]) -> Float[Tensor, "batch dimension"]:
        return (scores - scores.new_tensor(self._mean)) / scores.new_tensor(self._sd)


@final
class Weighted(Reward):
    """The weighted sum of rewards of one dimension each, as the single dimension "overall".

    Raises:
        ValueError: No parts, a part with several dimensions, or a weight that is not finite.
    """

    dimensions = ("overall",)

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        if not parts:
            raise ValueError("A weighted reward needs at least one part.")
        for reward, weight in parts:
            if len(reward.dimensions) != 1:
                names = ", ".join(reward.dimensions)
                raise ValueError(
                    f"A part has the dimensions {names}; choose one of them, as in NAME.{reward.dimensions[0]}."
                )
            if not math.isfinite(weight):
                raise ValueError(f"Weight {weight} must be finite.")
        self.parts = tuple(parts)
        self.differentiable = all(reward.differentiable for reward, _ in parts)

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """Nothing: each part preprocesses the whole image in its own way."""
        return image

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch 1"]:
        """The sum over the parts of weight times score."""
        return torch.stack([weight * reward(images, prompts) for reward, weight in self.parts]).sum(0)

    @contextmanager
    def remembering_prompts(self) -> Generator[None, None, None]:
        """Each part does."""
        with ExitStack() as stack:
            for reward, _ in self.parts:
                stack.enter_context(reward.remembering_prompts())
            yield
