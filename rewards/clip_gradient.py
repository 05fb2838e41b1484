"""The CLIP gradient that RAHF is compared with: where an image moves its CLIP score (arXiv 2312.10240, section 4.2).

The map is the saliency map of Simonyan et al. (arXiv 1312.6034, section 3.1), of the cosine instead of a class score.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Critic, Critique, Images, join_maps
from rewards.clip import ClipReward, load_clip, promote
from rewards.rahf.network import HEATMAPS
from rewards.rahf.words import split_words


@final
class ClipGradient(Critic, ClipReward):
    """A CLIP's cosine between image and text, and how strongly each pixel moves it.

    Nobody taught it what a defect is: both heatmaps are one and the same, the greatest magnitude over the channels of
    the cosine's gradient with respect to a pixel, divided by its maximum in the image; 0 everywhere where the gradient
    is. Gradients flow through the scores, but not through the maps, which are made of a gradient. The words of the
    prompt are given back, and none is ever said to be misaligned.

    Arguments:
        weights: A folder in open_clip's format, see `rewards.clip.load_clip`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores and maps of half-precision parameters are float32.
    """

    dimensions = ("overall",)
    heatmaps = HEATMAPS
    judges_words = False
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.network = load_clip(Path(weights), device, dtype)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """The cosine of each pair."""
        return self.network.cosines(pixels, prompts)[:, None]

    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        """Scores as calling gives them, and maps by a second pass, whether or not gradients are switched on."""
        scores = self(images, prompts)
        words = [split_words(prompt) for prompt in prompts]
        return Critique(
            scores=scores,
            heatmaps=dict.fromkeys(HEATMAPS, join_maps([*map(_strength, self._gradients(images, prompts))])),
            words=words,
            misaligned=[[False] * len(row) for row in words],
        )

    def _gradients(self, images: Images, prompts: Sequence[str]) -> tuple[Float[Tensor, "3 _ _"], ...]:
        """Of the score of each image with respect to it, in float32 or wider."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [promote(image.detach().clone()).requires_grad_() for image in images]
            return torch.autograd.grad(self(leaves, prompts).sum(), leaves)


def _strength(gradient: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """The greatest magnitude over the channels, divided by its maximum."""
    strength = gradient.abs().amax(0)
    return torch.where(strength.amax() > 0, strength / strength.amax(), 0.0)
