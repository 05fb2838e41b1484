"""How pages and cards write numbers and pictures."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from align.report.templates import data_uri, number, percent, signed, small_data_uri


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_small_images_are_kept_pixel_by_pixel() -> None:
    levels = torch.randint(0, 256, (3, 64, 48), generator=torch.Generator().manual_seed(0))
    uri = data_uri(levels / 255)
    assert uri.startswith("data:image/png")
    assert np.array_equal(np.asarray(decode(uri)), levels.permute(1, 2, 0).numpy())


def test_so_is_a_row_of_small_images() -> None:
    levels = torch.randint(0, 256, (3, 64, 270), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(np.asarray(decode(data_uri(levels / 255))), levels.permute(1, 2, 0).numpy())


def test_large_images_are_shrunk() -> None:
    uri = data_uri(torch.full((3, 1024, 768), 0.5))
    assert uri.startswith("data:image/webp")
    assert decode(uri).size == (384, 512)
    assert decode(small_data_uri(torch.full((3, 1024, 768), 0.5))).size == (192, 256)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (0.0834, "0.083"),
        (-0.0834, "−0.083"),
        (21.5, "21.500"),
        (1234.5, "1,234.5"),
        (0.000412, "0.00041"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown
    assert signed(value) == (shown if value < 0 else f"+{shown}")


def test_percent() -> None:
    assert (percent(0.351), percent(-0.1), percent(1.2)) == ("35%", "−10%", "120%")
