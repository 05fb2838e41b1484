"""PickScore: a CLIP ViT-H/14 tuned on which of two pictures users picked (Kirstain et al., arXiv 2305.01569)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.clip import ClipReward, load_clip
from rewards.tokens import transformers_tokenizer


@final
class PickScore(ClipReward):
    """The cosine times the exponential of the network's own logit scale: about 18 to 23.

    The softmax over images of one prompt is the probability that each is picked.

    Arguments:
        weights: A folder in open_clip's format, see `rewards.clip.load_clip`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        network = load_clip(Path(weights), device, dtype)
        tokenize = transformers_tokenizer(network.model.context_length)
        self.network = replace(network, tokenize=tokenize, image=replace(network.image, crop_rounds_down=True))

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """How readily each image would be picked for its prompt."""
        return self.network.scale * self.network.cosines(pixels, prompts)[:, None]
