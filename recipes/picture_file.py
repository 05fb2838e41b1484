"""A picture in its file: read such that it can be written again with none but the changed pixels changed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from align.state import atomic_path
from recipes.picture_encoding import Encoding
from rewards.image_file import as_tensor, is_deep, opened

SCALES = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}
"""A level of 8 bits in other numbers: of a grey of 16 bits, and of one of fractions."""


@dataclass(frozen=True, eq=False)
class PictureFile:
    """A picture and its file.

    Attributes:
        content: The encoded file.
        pixels: RGB, turned as EXIF says; below transparency the colours that the file has there.
        notes: What is lost when a changed picture is written, in words for the user.
        levels: What is written for an unchanged picture: grey or RGB of 8 bits, either with alpha, or one channel of
            16-bit or fractional grey. A grey picture stays grey, whatever colours it is given.
        encoding: How the file was encoded, and what it carries.
    """

    content: bytes
    pixels: UInt8[Tensor, "3 h w"]
    notes: tuple[str, ...]
    levels: Shaped[np.ndarray, "h w channel"]
    encoding: Encoding

    @classmethod
    def read(cls, content: bytes) -> "PictureFile":
        """Decode a file.

        Raises:
            ValueError: What `rewards.image_file.read_image` refuses.
        """
        with opened(content) as file:
            upright = ImageOps.exif_transpose(file)
            if is_deep(upright):
                as_tensor(upright)  # refuses levels beyond black and white
            levels, encoding = _levels(upright), Encoding.of(file, upright, content)
        return cls(content, _rgb(levels), encoding.notes, levels, encoding)

    def seen(self, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """What `rewards.image_file.read_image` gives of the file with these pixels (of a lossless one, to the bit).

        Raises:
            ValueError: Pixels of another size.
        """
        return as_tensor(self._picture(pixels))

    def write(self, folder: Path, name: str, pixels: UInt8[Tensor, "3 h w"], keep_format: bool) -> Path:
        """Write the picture with these pixels, atomically, and return where.

        Without a change the file is copied under its name. Otherwise pixels that are equal to `self.pixels` decode to
        what they were, and transparency, colour profile, EXIF, texts and resolution are kept. A PNG, BMP, TIFF or
        lossless WebP keeps format and name (a BMP with transparency does not); any other becomes STEM.png. With
        `keep_format` a JPEG is written as a JPEG with its own tables, and an AVIF as one of quality 95, both of which
        change all pixels a little; a WebP is written without loss. A GIF becomes a PNG all the same.

        Raises:
            ValueError: Pixels of another size.
        """
        picture = self._picture(pixels)
        if not self._changed(pixels).any():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(self.content)
            return folder / name
        return self.encoding.write(picture, folder, name, keep_format)

    def _changed(self, pixels: Tensor) -> Bool[Tensor, "h w"]:
        return (pixels.cpu() != self.pixels).any(0)

    def _picture(self, pixels: Tensor) -> Image.Image:
        """The levels with the changed pixels in place; alpha stays as it is."""
        if pixels.shape != self.pixels.shape:
            raise ValueError(
                f"Pixels of shape {tuple(pixels.shape)} came for a picture of {tuple(self.pixels.shape)} (channel, "
                "height, width); they must be of one size. Resize them."
            )
        levels, changed = self.levels.copy(), self._changed(pixels).numpy()
        rgb = Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
        colours = np.atleast_3d(np.asarray(rgb if levels.shape[2] > 2 else rgb.convert("L")))
        levels[changed, : colours.shape[2]] = colours[changed] * SCALES[levels.dtype.name]
        return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def _levels(image: Image.Image) -> Shaped[np.ndarray, "h w channel"]:
    """A picture of any mode in the one that it is written in."""
    if is_deep(image):
        return np.atleast_3d(np.asarray(image).astype(np.float32 if image.mode == "F" else np.uint16))
    colours = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    alpha = "A" if image.has_transparency_data else ""
    return np.atleast_3d(np.asarray(image.convert(colours + alpha)))


def _rgb(levels: Shaped[np.ndarray, "h w channel"]) -> UInt8[Tensor, "3 h w"]:
    colours = levels[..., : 3 if levels.shape[2] > 2 else 1]
    if levels.dtype != np.uint8:
        colours = np.rint(colours / SCALES[levels.dtype.name]).astype(np.uint8)
    return torch.from_numpy(colours.copy()).permute(2, 0, 1).expand(3, -1, -1).contiguous()
