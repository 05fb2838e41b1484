"""How sharp an image is, so that blurry ones can be left out of a training set."""

import torch
from jaxtyping import Float
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def sharpness(image: Float[Tensor, "3 h w"]) -> float:
    """The variance of the Laplacian of the brightness, over the variance of the brightness itself.

    The variance of the Laplacian is a usual measure of focus (Pech-Pacheco et al. 2000); it looks along both axes. The
    ratio is the same for an image with less contrast or another brightness. White noise has 20; a picture of smooth
    gradients is near 0, and so is a flat one, which shows nothing sharp.

    Raises:
        ValueError: The image has no inner pixel.
    """
    if min(image.shape[1:]) < 3:
        raise ValueError(
            f"An image of {tuple(image.shape[1:])} pixels has no inner ones; sharpness needs 3 x 3 or more."
        )
    brightness = torch.einsum("c,chw->hw", torch.tensor(LUMA, dtype=torch.float64), image.detach().double().cpu())
    middle = brightness[1:-1, 1:-1]
    around = brightness[:-2, 1:-1] + brightness[2:, 1:-1] + brightness[1:-1, :-2] + brightness[1:-1, 2:]
    contrast = brightness.var().item()
    return (around - 4 * middle).var().item() / contrast if contrast > 1e-12 else 0.0
