"""LAION's aesthetic predictor v2: people's ratings from a CLIP ViT-L/14's image features (arXiv 2210.08402).

The head is github.com/christophschuhmann/improved-aesthetic-predictor's `sac+logos+ava1-l14-linearMSE.pth`.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rewards.clip import ClipNetwork, ClipReward, load_clip

HEAD = "aesthetic_head.safetensors"
WIDTHS = (1024, 128, 64, 16, 1)
"""Of the head's layers."""


@final
class Aesthetic(ClipReward):
    """How beautiful people find the image, about 1 to 10. It does not look at the prompt.

    Arguments:
        weights: A folder with a CLIP in open_clip's format (see `rewards.clip.load_clip`) and `HEAD`.
        device: Where the network goes; images are expected there.
        dtype: Of the CLIP's parameters; the small head is not computed in half precision.

    Raises:
        ValueError: A file that is missing, damaged, or not of this network.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.network = load_clip(Path(weights), device, dtype)
        self.head = _load_head(Path(weights) / HEAD, self.network)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """The predicted rating of each image; the prompts are not looked at."""
        del prompts
        return self.head(self.network.encode_pixels(pixels))


def make_head(width: int) -> nn.Sequential:
    """The head on features of `width`: linear layers with nothing between them (in training there was dropout)."""
    return nn.Sequential(*(nn.Linear(old, new) for old, new in pairwise((width, *WIDTHS))))


def _load_head(path: Path, network: ClipNetwork) -> nn.Sequential:
    scale = network.scale
    head = make_head(network.model.get_parameter("text_projection").shape[1])
    try:
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold the head of this network ({error}). Restore it, or convert it anew "
            "with `align convert`."
        ) from error
    return head.requires_grad_(False).to(scale.device, scale.dtype)
