"""Preprocessing against PIL and torchvision."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as official

from rewards.image import (
    center_pad,
    crop_shortest,
    normalise,
    resize,
    resize_float,
    resize_longest,
    resize_longest_float,
    round_to_8_bit,
)

SIZES = [(64, 64), (48, 90), (101, 37), (20, 130), (63, 64)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def _pixels(height: int, width: int) -> NDArray[np.uint8]:
    """Noise, and hard edges where a cubic filter overshoots."""
    generator = np.random.default_rng(height * 1000 + width)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2] = (pixels[: height // 2] > 127) * np.uint8(255)
    return pixels


def _tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def _pil(pixels: NDArray[np.uint8], height: int, width: int, interpolation: str) -> NDArray[np.uint8]:
    """PIL along rows, then along columns, which is the order of its one call before version 13."""
    rows = Image.fromarray(pixels).resize((width, len(pixels)), FILTERS[interpolation])
    return np.array(rows.resize((width, height), FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("new", [(32, 32), (64, 64), (77, 150), (5, 31)])
@pytest.mark.parametrize("old", SIZES)
def test_resize_is_pils_in_every_pixel(old: tuple[int, int], new: tuple[int, int], interpolation: str) -> None:
    pixels = _pixels(*old)
    ours = resize(_tensor(pixels), *new, interpolation)
    assert torch.equal(ours, _tensor(_pil(pixels, *new, interpolation)))


def test_resize_sees_the_png_of_a_float_image() -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(image, 16, 16), resize(round_to_8_bit(image), 16, 16))


def test_resize_works_on_batches() -> None:
    images = torch.rand(2, 4, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(images, 8, 9)[1, 2], resize(images[1, 2], 8, 9))


def test_resize_after_inference_mode_still_has_a_gradient() -> None:
    with torch.inference_mode():
        resize(torch.rand(3, 23, 29), 11, 13)
    image = torch.rand(3, 23, 29, requires_grad=True)
    resize(image, 11, 13).sum().backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad.sum().item(), 3.0 * 11 * 13, rtol=0.1, atol=0)


def test_the_gradient_passes_the_rounding_and_stops_at_clipping() -> None:
    image = torch.tensor([[[-0.1, 0.0, 0.3, 1.0, 1.1]]], requires_grad=True)
    rounded = round_to_8_bit(image)
    rounded.sum().backward()
    assert rounded.tolist() == torch.tensor([[[0.0, 0.0, 77 / 255, 1.0, 1.0]]]).tolist()  # 76.5 rounds upwards
    assert image.grad is not None
    assert image.grad.tolist() == [[[0.0, 1.0, 1.0, 1.0, 0.0]]]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("side", [19, 40, 64])
@pytest.mark.parametrize("size", SIZES)
def test_shortest_side_and_crop_are_torchvisions(size: tuple[int, int], side: int, interpolation: str) -> None:
    pixels = _pixels(*size)
    resized: Any = official.resize(Image.fromarray(pixels), [side])  # pyright: ignore[reportArgumentType]
    whole = _tensor(_pil(pixels, resized.height, resized.width, interpolation))
    assert torch.equal(crop_shortest(_tensor(pixels), side, interpolation), official.center_crop(whole, [side]))


def test_a_long_strip_is_cut_without_its_ends() -> None:
    """Whole, it would be 140,000 pixels wide after resizing, and so would the matrix, of 22 GB."""
    strip = torch.rand(3, 32, 20_000, generator=torch.Generator().manual_seed(0))
    inner = strip[..., 9900:10100]  # cut at multiples of 32 / 224 pixels, so that the new pixels lie the same
    assert torch.equal(crop_shortest(strip, 224), crop_shortest(inner, 224))


@pytest.mark.parametrize("size", SIZES)
def test_longest_side_and_pad_fill_the_square(size: tuple[int, int]) -> None:
    small = resize_longest(_tensor(_pixels(*size)), 40)
    assert max(small.shape[1:]) == 40
    assert abs(small.shape[1] / small.shape[2] - size[0] / size[1]) * min(size) / max(size) < 0.1
    border = [(40 - small.shape[2]) // 2, (40 - small.shape[1]) // 2]
    far = [(41 - small.shape[2]) // 2, (41 - small.shape[1]) // 2]
    assert torch.equal(center_pad(small, 40, 0.25), official.pad(small, [*border, *far], fill=0.25))


def test_normalise_is_torchvisions() -> None:
    image, mean, std = torch.rand(2, 3, 4, 4), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    assert torch.equal(normalise(image, mean, std), official.normalize(image, mean, std))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: resize(image, 0, 4), r"Cannot resize \(4, 6\) to \(0, 4\)"),
        (lambda image: resize(image, 2, 2, "lanczos"), "'lanczos' is unknown; use one of bicubic, bilinear"),
        (lambda image: center_pad(image, 5), "Cannot pad 4 x 6 pixels to 5 x 5"),
    ],
    ids=["size", "filter", "pad"],
)
def test_impossible_sizes_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call(torch.rand(3, 4, 6))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new", [(32, 32), (64, 64), (77, 150), (5, 31)])
@pytest.mark.parametrize("old", SIZES)
def test_resize_float_is_torchvisions(old: tuple[int, int], new: tuple[int, int], antialias: bool) -> None:
    image = _tensor(_pixels(*old))
    expected = official.resize(image, list(new), official.InterpolationMode.BICUBIC, antialias=antialias)
    torch.testing.assert_close(resize_float(image, *new, antialias), expected, atol=3e-5, rtol=0)


def test_resize_longest_float_rounds_the_product() -> None:
    """30 pixels of 640 become 10.5 of 224, which is rounded to even; the quotient is a little more."""
    image = torch.rand(3, 30, 640, generator=torch.Generator().manual_seed(0))
    assert resize_longest_float(image, 224, antialias=False).shape == (3, 10, 224)


def test_resize_float_refuses_nothing_left() -> None:
    with pytest.raises(ValueError, match="both sides must be at least 1 pixel"):
        resize_float(torch.rand(3, 4, 4), 0, 4, antialias=True)


@pytest.mark.parametrize("height", [224, 225, 229, 231])
def test_transformers_crops_round_down(height: int) -> None:
    """A border of 7 pixels is cut as 3 above and 4 below; torchvision cuts 4 and 3."""
    rows = torch.arange(height, dtype=torch.float32)[:, None].expand(3, height, 224)
    assert crop_shortest(rows / 255, 224, round_down=True)[0, 0, 0] * 255 == (height - 224) // 2


def test_a_side_that_needs_too_large_a_matrix_is_refused() -> None:
    strip = torch.zeros(3, 1, 65_536)
    for call in (
        lambda: crop_shortest(strip, 224),
        lambda: resize(strip, 8, 8),
        lambda: resize_float(strip, 8, 8, True),
    ):
        with pytest.raises(ValueError, match="sides may have up to 65,535 pixels. Shrink or cut it first"):
            call()
