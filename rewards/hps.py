"""The Human Preference Score: a CLIP tuned on which of several images people chose (Wu et al., arXiv 2303.14420)."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.clip import ClipReward, load_clip


@final
class HPS(ClipReward):
    """The raw cosine of the tuned CLIP, in [-1, 1]; multiply by 100 for the scale of the paper's tables.

    HPS v1 has the architecture and the arithmetic of CLIP; all that it learned is in the weights (`training/choice.py`
    has the loss). The authors' evaluation reports the raw cosine, and so does this class.

    Arguments:
        weights: A folder in open_clip's format, see `rewards.clip.load_clip`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.network = load_clip(Path(weights), device, dtype)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """How well people would like each image for its prompt."""
        return self.network.cosines(pixels, prompts)[:, None]
