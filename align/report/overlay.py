"""A heatmap over the picture that it is about, for eyes."""

import torch
from jaxtyping import Float
from torch import Tensor

WARM = ((1.00, 0.93, 0.55), (1.00, 0.74, 0.26), (0.98, 0.49, 0.14), (0.90, 0.20, 0.11), (0.80, 0.00, 0.14))
"""Colours (sRGB) of heat 0, 1/4, ... 1: from light yellow to dark red, each darker to the eye than the one before."""

OPACITY = 0.8
"""Of full heat: what is flawed is still seen below it."""

DESATURATION = 0.4
"""How far the picture goes towards grey, so that its own reds are not taken for heat."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey (ITU-R BT.601)."""


def overlay(image: Float[Tensor, "3 h w"], heatmap: Float[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """The image (RGB in [0, 1]), slightly greyed, under the colours of a heatmap in [0, 1].

    Opacity grows with heat: where there is none, the image's own hue and brightness are left.

    Raises:
        ValueError: The heatmap has another size than the image, or values outside [0, 1].
    """
    _check(image, heatmap)
    grey = torch.einsum("c,chw->hw", image.new_tensor(LUMA), image)
    opacity = OPACITY * heatmap
    return torch.lerp(torch.lerp(image, grey, DESATURATION), warm(heatmap).to(image), opacity.to(image))


def warm(heat: Float[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """The colour of each heat in [0, 1], linear between those of `WARM`."""
    colours = heat.new_tensor(WARM).T
    position = heat * (len(WARM) - 1)
    below = position.long().clamp(max=len(WARM) - 2)
    return torch.lerp(colours[:, below], colours[:, below + 1], position - below)


def _check(image: Tensor, heatmap: Tensor) -> None:
    if image.shape[1:] != heatmap.shape:
        raise ValueError(
            f"The heatmap is {tuple(heatmap.shape)} and the image {tuple(image.shape[1:])} (height, width); they must "
            "be of one size. Resize the heatmap."
        )
    if not ((heatmap >= 0) & (heatmap <= 1)).all():  # False for NaN, too
        low, high = heatmap.min().item(), heatmap.max().item()
        raise ValueError(f"The heatmap goes from {low:.4g} to {high:.4g}; heat must be in [0, 1]. Rescale or clamp it.")
