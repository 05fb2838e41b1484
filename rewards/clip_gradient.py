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
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.network = load_clip(Path(weights), device, dtype)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """The cosine of each pair."""
        return self.network.cosines(pixels, prompts)[:, None]

    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        """Scores and maps in one pass forwards and one back, whether or not the caller has gradients switched on."""
        kept = torch.is_grad_enabled() and any(image.requires_grad for image in images)
        with torch.inference_mode(False), torch.enable_grad():
            seen = [_differentiable(image) for image in images]
            scores = self(seen, prompts)
            gradients = torch.autograd.grad(scores.sum(), seen, retain_graph=kept)
        words = [split_words(prompt) for prompt in prompts]
        return Critique(
            scores=scores if kept else scores.detach(),
            heatmaps=dict.fromkeys(HEATMAPS, join_maps([_strength(gradient) for gradient in gradients])),
            words=words,
            misaligned=[[False] * len(row) for row in words],
        )


def _differentiable(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The image where the caller differentiates through it, otherwise a copy, both in float32 or wider."""
    return promote(image if image.requires_grad else image.detach().clone().requires_grad_())


def _strength(gradient: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """The greatest magnitude over the channels, divided by its maximum."""
    strength = gradient.abs().amax(0)
    return torch.where(strength.amax() > 0, strength / strength.amax(), 0.0)
