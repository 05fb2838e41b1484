"""Files of every kind become the RGB in [0, 1] that they show; what cannot be read is refused with the reason."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.image_file import has_transparency, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_pictures_are_read_exactly(kind: str) -> None:
    content = _encoded(Image.fromarray(NOISE), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert torch.equal(read_image(content), torch.from_numpy(NOISE).permute(2, 0, 1) / 255)


def test_a_path_is_read_as_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_encoded(Image.fromarray(NOISE)))
    assert torch.equal(read_image(path), read_image(path.read_bytes()))


def test_grey_has_three_equal_channels() -> None:
    image = read_image(_encoded(Image.fromarray(NOISE[..., 0])))
    assert torch.equal(image, torch.from_numpy(NOISE[..., 0]).expand(3, -1, -1) / 255)


def test_sixteen_bits_keep_their_precision() -> None:
    levels = np.array([[0, 1, 257], [30000, 65534, 65535]], dtype=np.uint16)
    image = read_image(_encoded(Image.fromarray(levels)))
    torch.testing.assert_close(image, torch.from_numpy(levels / 65535).float().expand(3, -1, -1))


def test_fractions_are_read_and_other_floats_refused() -> None:
    levels = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)
    assert torch.equal(read_image(_encoded(Image.fromarray(levels), "TIFF"))[1], torch.from_numpy(levels))
    with pytest.raises(ValueError, match="grey levels from 0 to 3 where 0 is black"):
        read_image(_encoded(Image.fromarray(levels * 3), "TIFF"))


@pytest.mark.parametrize("alpha", [0, 51, 255])
def test_transparent_parts_are_white(alpha: int) -> None:
    rgba = np.dstack([NOISE, np.full(NOISE.shape[:2], alpha, np.uint8)])
    content = _encoded(Image.fromarray(rgba))
    expected = torch.from_numpy(NOISE / 255 * (alpha / 255) + 1 - alpha / 255).float().permute(2, 0, 1)
    torch.testing.assert_close(read_image(content), expected, atol=1.01 / 255, rtol=0)
    assert has_transparency(content)
    assert not has_transparency(_encoded(Image.fromarray(NOISE)))
    assert not has_transparency(b"no image")


def test_a_palette_with_a_transparent_colour_is_flattened() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = read_image(_encoded(image, transparency=0))
    assert pixels[:, 0].T.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_camera_was_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned = read_image(_encoded(Image.fromarray(NOISE), exif=exif))
    assert torch.equal(turned, torch.from_numpy(np.rot90(NOISE, -1).copy()).permute(2, 0, 1) / 255)


def test_printers_colours_become_rgb() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(_encoded(cmyk, "JPEG", quality=100))[:, 4, 4]
    torch.testing.assert_close(red, torch.tensor([1.0, 0.0, 0.0]), atol=0.02, rtol=0)


def test_a_very_wide_picture_is_read() -> None:
    assert read_image(_encoded(Image.new("RGB", (20_000, 3), "red"))).shape == (3, 3, 20_000)


def test_a_gif_of_one_frame_is_a_picture() -> None:
    assert read_image(_encoded(Image.new("RGB", (4, 4), "blue"), "GIF"))[:, 0, 0].tolist() == [0, 0, 1]


def _animation() -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    return _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file is empty"),
        (b"<html>", "no image of a known format"),
        (_encoded(Image.fromarray(NOISE))[:60], "cannot be read as an image"),
        (_encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "cannot be read as an image .*truncated"),
        (_animation(), "an animation of 3 frames"),
        (_encoded(Image.new("1", (20_000, 20_000))), "cannot be read as an image .*decompression bomb"),
    ],
    ids=["empty", "text", "png", "jpeg", "gif", "bomb"],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(content)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of what it skips
def test_damage_of_any_kind_is_an_error_of_ours() -> None:
    generator = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        whole = _encoded(Image.fromarray(NOISE), kind, **({"exif": exif} if kind in ("JPEG", "WEBP") else {}))
        for _ in range(60):
            content = bytearray(whole)
            for place in generator.integers(len(content), size=4):
                content[place] = generator.integers(256)
            has_transparency(bytes(content))
            with contextlib.suppress(ValueError):
                assert read_image(bytes(content)).shape[0] == 3


def test_a_photo_of_two_pictures_is_its_first() -> None:
    two = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = _encoded(two[0], "TIFF", save_all=True, append_images=two[1:])
    assert read_image(content)[:, 0, 0].tolist() == [1, 0, 0]
