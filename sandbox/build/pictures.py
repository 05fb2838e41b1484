"""What the sandbox's models are trained on: rendered scenes with their captions, a share of them flawed."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from sandbox.flaws import random_flaw
from sandbox.world import Split, caption, lay_out, render, sample_spec


@dataclass(frozen=True)
class Pictures:
    """Captioned 8-bit pictures, held in memory."""

    pixels: UInt8[np.ndarray, "n 64 64 3"]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, indices: NDArray[np.int_]) -> Float[Tensor, "batch 3 64 64"]:
        """Some of the pictures, in [0, 1]."""
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2).float() / 255

    def batch(self, step: int, size: int, seed: int) -> NDArray[np.int_]:
        """The indices of a step's batch: a pure function of seed and step."""
        return np.random.default_rng((seed, step)).integers(len(self), size=size)


def draw_pictures(count: int, split: Split, flawed: float, seed: int) -> Pictures:
    """Draw `count` random scenes of a split; the share `flawed` of them has a flaw that the caption does not tell."""
    generator = np.random.default_rng(seed)
    pixels = np.empty((count, 64, 64, 3), np.uint8)
    captions: list[str] = []
    for index in range(count):
        scene = lay_out(sample_spec(generator, split), generator)
        image = random_flaw(scene, generator).image if generator.random() < flawed else render(scene)
        pixels[index] = to_bytes(image)
        captions.append(caption(scene.spec))
    return Pictures(pixels, captions)


def to_bytes(image: NDArray[np.float64]) -> UInt8[np.ndarray, "64 64 3"]:
    """Round an image in [0, 1] to 8 bits."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
