"""How a picture's file is encoded and what it carries beside its pixels, so that it can be written again alike."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from align.state import atomic_path
from rewards.image_file import SUFFIXES, is_deep

LOSSLESS = ("PNG", "BMP", "TIFF", "GIF")
"""Formats of Pillow that are; WebP may be, and a TIFF is written so, whatever it was."""
PROFILE_OF_INKS = ("CMYK", "LAB")
"""Modes whose colour profile says nothing of the RGB that is made of them."""
COLOUR_CHUNKS = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
"""Of a PNG: what its numbers look like, where there is no colour profile."""
XMP: Final = "XML:com.adobe.xmp"
ORIENTED = "Raw profile type exif"
"""A text of a PNG in which older programs put EXIF, and with it the orientation."""

TIFF_DIRECTORIES = (34665, 34853)
"""EXIF and GPS."""
TIFF_TAGS = (
    269,  # DocumentName
    270,  # ImageDescription
    271,  # Make
    272,  # Model
    305,  # Software
    306,  # DateTime
    315,  # Artist
    316,  # HostComputer
    700,  # XMP
    33432,  # Copyright
    *TIFF_DIRECTORIES,
)
"""What a TIFF says of the picture; its other tags say where the pixels lie."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a file is encoded, and what it carries.

    Attributes:
        format: Pillow's name of it.
        lossless: Whether the pixels were kept as they were.
        options: What `Image.save` needs, by format; "" has those of all.
        notes: What is lost when it is written again, for the user.
    """

    format: str
    lossless: bool
    options: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, file: Image.Image, upright: Image.Image, content: bytes) -> "Encoding":
        """Of an opened file, the same as `ImageOps.exif_transpose` turned it, and the file's bytes."""
        kind = "JPEG" if file.format == "MPO" else str(file.format)
        common = {
            "icc_profile": None if file.mode in PROFILE_OF_INKS else upright.info.get("icc_profile"),
            "exif": _exif(file, upright),
            "dpi": upright.info.get("dpi"),
            "xmp": upright.info.get("xmp"),
            "comment": upright.info.get("comment"),
        }
        options = {
            "": {key: value for key, value in common.items() if value},
            "PNG": {"pnginfo": _chunks_to_keep(file, upright, content), **_clear_level(file)},
            "WEBP": {"lossless": True, "exact": True},  # exact: colours below transparency, too
            "TIFF": {"compression": _compression(file)},
            "JPEG": _tables(file),
            "AVIF": {"quality": 95, "subsampling": "4:4:4"},
        }
        lossless = kind in LOSSLESS or (kind == "WEBP" and b"VP8L" in dict(_riff_chunks(content)))
        return cls(kind, lossless, options, tuple(_losses(file, content)))

    def target(self, picture: Image.Image, keep_format: bool) -> str:
        """The format that a changed picture is written in: its own, or PNG."""
        holds = self.format != "GIF" and not (self.format == "BMP" and picture.has_transparency_data)
        return self.format if holds and (self.lossless or keep_format) else "PNG"

    def write(self, picture: Image.Image, folder: Path, name: str, keep_format: bool) -> Path:
        """Encode a picture, under `name` if it keeps its format, and as STEM.png otherwise."""
        kind = self.target(picture, keep_format)
        path = folder / (name if kind == self.format else _as_png(name))
        with atomic_path(path) as temporary:
            picture.save(temporary, format=kind, **self.options[""], **self.options.get(kind, {}))
        return path


def _as_png(name: str) -> str:
    path = PurePath(name)
    return str(path.with_suffix(".png")) if path.suffix.lower() in SUFFIXES else f"{name}.png"


def _losses(file: Image.Image, content: bytes) -> Iterator[str]:
    if _depth(file, content) == 16 and not is_deep(file):
        yield "16 bits a channel are read as 8"
    if file.mode in (*PROFILE_OF_INKS, "YCbCr", "HSV"):
        drops = file.mode in PROFILE_OF_INKS and "icc_profile" in file.info
        yield f"{file.mode} becomes RGB" + (", and its colour profile is dropped" if drops else "")
    if file.format == "GIF":
        yield "a GIF becomes a PNG, as it holds no more than 256 colours"
    if (pages := getattr(file, "n_frames", 1)) > 1:
        yield f"of {pages} pages the first is kept"


def _depth(file: Image.Image, content: bytes) -> int:
    """Bits a channel, where the file may have more than 8."""
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return max(file.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    return content[24] if file.format == "PNG" else 8  # the second field of the header


def _exif(file: Image.Image, upright: Image.Image) -> bytes | None:
    if not isinstance(file, TiffImagePlugin.TiffImageFile):
        return upright.info.get("exif")
    exif = file.getexif()
    for tag in set(exif) - set(TIFF_TAGS):
        del exif[tag]
    return exif.tobytes() if len(exif) else None


def _clear_level(file: Image.Image) -> dict[str, int]:
    """The level of a deep grey that is transparent, which is no alpha channel to Pillow, if there is one."""
    return {"transparency": file.info["transparency"]} if is_deep(file) and "transparency" in file.info else {}


def _compression(file: Image.Image) -> str:
    """The TIFF's own if pixels of any kind survive it; none beside EXIF or GPS, with which Pillow cannot compress."""
    if set(TIFF_DIRECTORIES) & set(file.getexif()):
        return "raw"
    own = file.info.get("compression")
    return own if own in ("raw", "tiff_lzw", "packbits") else "tiff_adobe_deflate"


def _tables(file: Image.Image) -> dict[str, Any]:
    if not isinstance(file, JpegImagePlugin.JpegImageFile):
        return {}
    tables: dict[int, list[int]] = file.quantization
    sampling = JpegImagePlugin.get_sampling(file)
    progressive = bool(file.info.get("progressive"))
    return {"qtables": [tables[key] for key in sorted(tables)], "subsampling": sampling, "progressive": progressive}


def _chunks_to_keep(file: Image.Image, upright: Image.Image, content: bytes) -> PngImagePlugin.PngInfo:
    """Texts (prompts and workflows of generators are such), and what the colours mean."""
    kept = PngImagePlugin.PngInfo()
    if isinstance(file, PngImagePlugin.PngImageFile):
        for name, data in _png_chunks(content):
            if name in COLOUR_CHUNKS:
                kept.add(name, data)
        for key, text in file.text.items():
            if key != XMP:
                kept.add_text(key, upright.info[key] if key == ORIENTED else text)
    if xmp := upright.info.get("xmp"):
        kept.add_itxt(XMP, xmp.decode("utf-8", "replace"))
    return kept


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        yield name, content[place + 8 : place + 8 + length]
        place += 12 + length


def _riff_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Names and lengths of a WebP's chunks, which start at even places."""
    place = 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        yield name, length
        place += 8 + length + length % 2
