"""The gold truth as a reward, for judging: `--rewards sandbox.gold:Gold`."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Images, Reward, check_pairs
from sandbox.measure import measure


class Gold(Reward):
    """What `sandbox.measure` reads from pictures of 64 x 64 pixels, in [0, 1]; captions of the grammar only."""

    dimensions = ("overall", "plausibility", "alignment", "aesthetics")
    differentiable = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """Nothing: the measurement takes pictures as they are."""
        return image

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch 4"]:
        """Measure each picture against its caption.

        Raises:
            ValueError: A picture of another size, or a caption outside the grammar.
        """
        check_pairs(images, prompts)
        golds = [measure(_pixels(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        scores = [[getattr(gold, dimension) for dimension in self.dimensions] for gold in golds]
        return torch.tensor(scores, dtype=torch.float32, device=self._device)


def _pixels(image: Float[Tensor, "3 h w"]) -> np.ndarray:
    return image.detach().permute(1, 2, 0).double().cpu().numpy()
