"""The augmentation of RAHF (arXiv 2312.10240, supplement): the maps are cropped as the image is.

With probability 0.5 a random crop of 0.8 to 1 of each side; with 0.1 each: brightness by up to 0.05 either way,
contrast and saturation by 0.8 to 1, hue by up to 0.025 either way, JPEG of quality 70 to 100; with 0.1 grey.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as change

CROP, SHORTEST = 0.5, 0.8
COLOUR = 0.1

Change = Callable[[Float[Tensor, "3 h w"], float], Float[Tensor, "3 h w"]]


def _brightness(image: Tensor, by: float) -> Tensor:
    return change.adjust_brightness(image, by)


def _contrast(image: Tensor, by: float) -> Tensor:
    return change.adjust_contrast(image, by)


def _saturation(image: Tensor, by: float) -> Tensor:
    return change.adjust_saturation(image, by)


def _hue(image: Tensor, by: float) -> Tensor:
    return change.adjust_hue(image, by)


def _jpeg(image: Tensor, quality: float) -> Tensor:
    levels = (image * 255).round().to(torch.uint8)
    return change.jpeg(levels, round(quality)).float() / 255


def _grey(image: Tensor, by: float) -> Tensor:
    del by
    return change.rgb_to_grayscale(image, num_output_channels=3)


CHANGES: Mapping[Change, tuple[float, float]] = MappingProxyType(
    {
        _brightness: (0.95, 1.05),
        _contrast: (0.8, 1.0),
        _hue: (-0.025, 0.025),
        _saturation: (0.8, 1.0),
        _jpeg: (70.0, 100.0),
        _grey: (0.0, 1.0),
    }
)
"""In their order, each with the range of its strength."""


def augment(
    image: Float[Tensor, "3 h w"], maps: Float[Tensor, "map map_h map_w"], generator: np.random.Generator
) -> tuple[Float[Tensor, "3 _ _"], Float[Tensor, "map _ _"]]:
    """An image in [0, 1] and its maps, of any size, changed at random; all randomness is the generator's."""
    if generator.random() < CROP:
        image, maps = _crop(image, maps, generator)
    for apply, (low, high) in CHANGES.items():
        strength = float(generator.uniform(low, high))
        if generator.random() < COLOUR:
            image = apply(image, strength).clamp(0, 1)
    return image, maps


def _crop(
    image: Float[Tensor, "3 h w"], maps: Float[Tensor, "map map_h map_w"], generator: np.random.Generator
) -> tuple[Float[Tensor, "3 _ _"], Float[Tensor, "map _ _"]]:
    """The same part of both: its sides are shares of the whole ones."""
    shares = generator.uniform(SHORTEST, 1, 2)
    starts = generator.uniform(0, 1 - shares)
    return _part(image, starts, shares), _part(maps, starts, shares)


def _part(values: Float[Tensor, "channel h w"], starts: np.ndarray, shares: np.ndarray) -> Float[Tensor, "channel _ _"]:
    sides = np.array(values.shape[-2:])
    first = np.floor(starts * sides).astype(int)
    top, left = first.tolist()
    bottom, right = np.maximum(np.ceil((starts + shares) * sides).astype(int), first + 1).tolist()
    return values[:, top:bottom, left:right]
