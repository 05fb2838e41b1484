"""The Human Preference Score v2 and v2.1: a CLIP ViT-H/14 tuned on HPD v2 (Wu et al., arXiv 2306.09341)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.clip import ClipReward, load_clip


@final
class HPSv2(ClipReward):
    """The raw cosine of the tuned CLIP, in [-1, 1]; multiply by 100 for the scale of the paper's tables.

    Version 2.0 and 2.1 differ in their weights alone, and their scales cannot be compared; nor, say the authors, can
    scores of different prompts. Where the authors' code raises, on an oblong image with a longer side of just 224
    pixels, this one pads like all others.

    Arguments:
        weights: A folder in open_clip's format, see `rewards.clip.load_clip`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.
        antialias: Of the resizing. The authors do not fix it: their code shrinks without in torchvision up to 0.16,
            current when HPS v2 came out, and with it from 0.17 on. Scores differ by some 0.005.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(
        self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32, antialias: bool = False
    ) -> None:
        network = load_clip(Path(weights), device, dtype)
        image = replace(network.image, resize_mode="longest-float", antialias=antialias)
        self.network = replace(network, image=image)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """How well people would like each image for its prompt."""
        return self.network.cosines(pixels, prompts)[:, None]
