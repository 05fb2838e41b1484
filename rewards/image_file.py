"""Image files of any kind as the RGB in [0, 1] that rewards score.

The picture is turned as its EXIF orientation says, of several pages the first is taken, transparency is flattened on
white, a grey one has three equal channels, and 16 bits a channel keep their precision where Pillow reads them (grey
ones; of colour it reads 8 bits).
"""

import io
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Of files that are taken for images."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What Pillow may take a file for, whatever it is called: others of its readers start programs."""
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")

BAD = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for a file that it cannot, or had better not, read; damaged ones take its readers anywhere."""


def read_image(file: Path | bytes) -> Float[Tensor, "3 h w"]:
    """Decode a file, or the bytes of one.

    Raises:
        ValueError: An empty, truncated or damaged file, none of an image, an animation, or one of more pixels than
            Pillow takes for safe (about 179 million).
    """
    with opened(file if isinstance(file, bytes) else file.read_bytes()) as image:
        return as_tensor(ImageOps.exif_transpose(image))


@contextmanager
def opened(content: bytes) -> Generator[Image.Image, None, None]:
    """The picture that a file's bytes hold, for as long as the `with` lasts; what it cannot give is a ValueError.

    Raises:
        ValueError: As `read_image` does, also for what Pillow finds while the picture is read inside of the `with`.
    """
    if not content:
        raise ValueError("The file is empty; it must hold an image. Restore it.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            if frames == 1:
                yield image
                return
    except UnidentifiedImageError as error:
        raise ValueError("It is no image of a known format. Restore the file, or leave it out.") from error
    except BAD as error:
        raise ValueError(f"It cannot be read as an image ({error}). Restore the file, or leave it out.") from error
    raise ValueError(f"It is an animation of {frames} frames; a score is of one picture. Save the frame that you mean.")


def alpha_of(content: bytes) -> Float[Tensor, "h w"] | None:
    """How opaque each pixel is; None where all are.

    Raises:
        ValueError: As `read_image` does.
    """
    with opened(content) as image:
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))
        return None if alpha.min() == 255 else torch.from_numpy(alpha.copy()).float() / 255


def has_transparency(content: bytes) -> bool:
    """Whether `read_image` flattens the image on white; False for a file that cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.has_transparency_data
    except BAD:
        return False


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits: whole numbers up to 65,535, or fractions up to 1 (mode F)."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """What `read_image` gives of an opened picture: RGB in [0, 1], its transparent parts flattened on white.

    Raises:
        ValueError: Deep grey levels beyond black and white.
    """
    if is_deep(image):
        grey = torch.from_numpy(_deep(image)).expand(3, -1, -1)
        return grey.clone()
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _deep(image: Image.Image) -> Float[np.ndarray, "h w"]:
    values = np.asarray(image).astype(np.float32)
    values = values if image.mode == "F" else values / 65535
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"grey levels from {values.min():g} to {values.max():g} where 0 is black and 1 is white")
    return values
