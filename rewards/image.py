"""Differentiable image preprocessing in pure torch, equal to what PIL does to pictures and torchvision to tensors.

All functions take RGB floats in [0, 1] with any leading dimensions, and let gradients through. Resampling is a product
with two small matrices instead of `torch.nn.functional.interpolate`: its backward pass is deterministic on every
device, and it can round where PIL rounds.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

MAX_SIDE = 65_535
"""Of an image that is resized, in pixels (a JPEG's own limit): the matrix for it has a column for each."""


def round_to_8_bit(image: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Clip to [0, 1] and round to multiples of 1 / 255, halves upwards; the gradient passes straight through."""
    return _levels(image * 255.0) / 255.0


def resize(
    image: Float[Tensor, "*batch h w"], height: int, width: int, interpolation: str = "bicubic"
) -> Float[Tensor, "*batch new_h new_w"]:
    """Resample as `PIL.Image.resize` does: antialiased, along rows and then along columns, each pass rounded to 8 bits.

    Equal in every pixel to PIL before version 13, which the published rewards were made with. (Pillow 13 takes the
    columns of tall images first; on Apple's GPUs one pixel in 100,000 is one level off.)

    Arguments:
        image: Rounded to 8 bits on entry, so that a float image and its PNG give the same result.
        height: In pixels.
        width: In pixels.
        interpolation: "bicubic" (a = -0.5) or "bilinear".

    Raises:
        ValueError: A side above `MAX_SIDE`, a size below one pixel, or another interpolation.
    """
    _check_size(image, height, width)
    return _resize(image, (height, width), interpolation, (0, 0), (height, width))


def crop_shortest(
    image: Float[Tensor, "*batch h w"], size: int, interpolation: str = "bicubic", round_down: bool = False
) -> Float[Tensor, "*batch size size"]:
    """Bring the shorter side to `size` pixels and cut the central square, as torchvision or transformers do.

    What is cut off is not made, so that a long strip takes no more memory than itself.

    Arguments:
        image: As for `resize`. The longer side is cut to an integer.
        size: In pixels.
        interpolation: As for `resize`.
        round_down: Where to put an odd border's extra pixel. False halves to even as torchvision's `CenterCrop` does,
            True rounds the top and left border down as transformers' image processors do.

    Raises:
        ValueError: A side above `MAX_SIDE`, a size below one pixel, or another interpolation.
    """
    _check_size(image, size, size)
    height, width = image.shape[-2:]
    short = min(height, width)
    whole = size * height // short, size * width // short
    top, left = ((side - size) // 2 if round_down else round((side - size) / 2) for side in whole)
    return _resize(image, whole, interpolation, (top, left), (size, size))


def resize_longest(
    image: Float[Tensor, "*batch h w"], size: int, interpolation: str = "bicubic"
) -> Float[Tensor, "*batch new_h new_w"]:
    """Bring the longer side to `size` pixels and round the shorter one (halves to even), as open_clip does."""
    height, width = image.shape[-2:]
    ratio = max(height, width) / size
    return resize(image, round(height / ratio), round(width / ratio), interpolation)


def resize_float(
    image: Float[Tensor, "*batch h w"], height: int, width: int, antialias: bool
) -> Float[Tensor, "*batch new_h new_w"]:
    """Resample bicubically as torchvision resizes a tensor of floats: nothing is rounded, and overshoots are kept.

    Arguments:
        image: Taken as it is.
        height: In pixels.
        width: In pixels.
        antialias: True widens the filter when shrinking (a = -0.5, torchvision's default from 0.17 on); False takes the
            nearest four pixels of each row and column (a = -0.75, its default before).

    Raises:
        ValueError: A side above `MAX_SIDE`, or a size below one pixel.
    """
    _check_size(image, height, width)
    wide = image.to(torch.float32 if image.device.type == "mps" else torch.float64)
    old_height, old_width = image.shape[-2:]
    if width != old_width:
        wide = wide @ _resampling_float(old_width, width, antialias, wide.dtype, wide.device).T
    if height != old_height:
        wide = _resampling_float(old_height, height, antialias, wide.dtype, wide.device) @ wide
    return wide.to(image.dtype)


def resize_longest_float(
    image: Float[Tensor, "*batch h w"], size: int, antialias: bool
) -> Float[Tensor, "*batch new_h new_w"]:
    """Bring the longer side to `size` pixels by `resize_float`, as open_clip did when HPS v2 was made."""
    # A product, where `resize_longest` divides: an exact half may fall on either side of rounding.
    scale = size / max(image.shape[-2:])
    height, width = (round(side * scale) for side in image.shape[-2:])
    return resize_float(image, height, width, antialias)


def center_pad(image: Float[Tensor, "*batch h w"], size: int, fill: float = 0.0) -> Float[Tensor, "*batch size size"]:
    """Surround the image by `fill` to a square of `size` pixels; an odd border has its extra pixel right or below."""
    height, width = image.shape[-2:]
    if max(height, width) > size:
        raise ValueError(f"Cannot pad {height} x {width} pixels to {size} x {size}: resize the image first.")
    top, left = (size - height) // 2, (size - width) // 2
    return pad(image, (left, size - width - left, top, size - height - top), value=fill)


def normalise(
    image: Float[Tensor, "*batch 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*batch 3 h w"]:
    """Subtract the mean of each channel and divide by its standard deviation."""
    return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]


def _check_size(image: Float[Tensor, "*batch h w"], height: int, width: int) -> None:
    if max(image.shape[-2:]) > MAX_SIDE:
        raise ValueError(
            f"Cannot resize {tuple(image.shape[-2:])}: sides may have up to {MAX_SIDE:,} pixels. Shrink or cut it "
            "first."
        )
    if min(height, width) < 1:
        raise ValueError(
            f"Cannot resize {tuple(image.shape[-2:])} to {(height, width)}: both sides must be at least 1 pixel."
        )


def _levels(levels: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    clipped = levels.clamp(0.0, 255.0)
    return clipped + _rounding_error(clipped.detach())


def _rounding_error(levels: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    return torch.floor(levels + 0.5) - levels


def _resize(
    image: Float[Tensor, "*batch h w"],
    whole: tuple[int, int],
    interpolation: str,
    corner: tuple[int, int],
    window: tuple[int, int],
) -> Float[Tensor, "*batch new_h new_w"]:
    """The part of an image resized to `whole` that starts at `corner` and is as large as `window`."""
    # In float32 a sum could fall on the wrong side of a tie; Apple's GPUs have nothing wider.
    wide = image.to(torch.float32 if image.device.type == "mps" else torch.float64)
    levels, (old_height, old_width) = _levels(wide * 255.0), image.shape[-2:]
    (height, width), (top, left), (rows, columns) = whole, corner, window
    if width == old_width:
        levels = levels[..., left : left + columns]
    else:
        matrix = _resampling(old_width, width, left, columns, interpolation, wide.dtype, wide.device)
        levels = _levels(levels @ matrix.T)
    if height == old_height:
        levels = levels[..., top : top + rows, :]
    else:
        matrix = _resampling(old_height, height, top, rows, interpolation, wide.dtype, wide.device)
        levels = _levels(matrix @ levels)
    return levels.to(image.dtype) / 255.0


@lru_cache(maxsize=64)
def _resampling(
    old: int, new: int, first: int, count: int, interpolation: str, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "count old"]:
    """The matrix that resamples `old` pixels to `new` in PIL; of the new ones, `count` from `first` on."""
    # A tensor made under inference_mode could never be used in a backward pass, and this one is kept.
    with torch.inference_mode(False):
        # PIL keeps its weights as 22-bit fixed-point numbers; where two levels tie, that decides.
        return ((_widened(old, new, first, count, interpolation) * 2**22).round() / 2**22).to(device, dtype)


@lru_cache(maxsize=64)
def _resampling_float(
    old: int, new: int, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "new old"]:
    """The matrix that resamples `old` pixels to `new` in torchvision, for tensors of floats."""
    with torch.inference_mode(False):
        weights = _widened(old, new, 0, new, "bicubic") if antialias else _nearest_four(old, new)
        return weights.to(device, dtype)


def _widened(old: int, new: int, first: int, count: int, interpolation: str) -> Float[Tensor, "count old"]:
    """The filter centred on each new pixel from `first` on, widened when shrinking, cut off at the borders."""
    kernel, reach = _kernel(interpolation)
    scale = old / new
    width = max(scale, 1.0)
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(old, dtype=torch.float64)
    start = (centres - reach * width + 0.5).floor().clamp(min=0)
    end = (centres + reach * width + 0.5).floor().clamp(max=old)
    weights = kernel((pixels[None, :] + 0.5 - centres[:, None]) / width)
    weights = weights * ((pixels >= start[:, None]) & (pixels < end[:, None]))
    return weights / weights.sum(1, keepdim=True)


def _nearest_four(old: int, new: int) -> Float[Tensor, "new old"]:
    """Cubic interpolation between the four nearest pixels; those beyond a border are the border's."""
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    weights = torch.zeros(new, old, dtype=torch.float64)
    for step in (-1, 0, 1, 2):
        pixels = places.floor() + step
        nearest = pixels.clamp(0, old - 1).long()[:, None]
        weights.scatter_add_(1, nearest, _bicubic(places - pixels, a=-0.75)[:, None])
    return weights


def _kernel(interpolation: str) -> tuple[Callable[[Tensor], Tensor], float]:
    """A resampling filter and the distance at which it ends, in pixels."""
    kernels = {"bicubic": (_bicubic, 2.0), "bilinear": (_bilinear, 1.0)}
    if interpolation not in kernels:
        raise ValueError(f"Interpolation {interpolation!r} is unknown; use one of {', '.join(kernels)}.")
    return kernels[interpolation]


def _bicubic(distance: Float[Tensor, "*shape"], a: float = -0.5) -> Float[Tensor, "*shape"]:
    """Keys' cubic convolution (IEEE TASSP 29, 1981, equation 15), with the slope `a` at distance 1."""
    x = distance.abs()
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x < 1.0, inner, torch.where(x < 2.0, outer, 0.0))


def _bilinear(distance: Float[Tensor, "new old"]) -> Float[Tensor, "new old"]:
    return (1.0 - distance.abs()).clamp(min=0.0)
