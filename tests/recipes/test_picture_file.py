"""A picture is written again with none but the changed pixels changed, whatever its file is like."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, features
from torch import Tensor

from recipes.picture_file import PictureFile
from rewards.image_file import read_image

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).choice(np.array([0, 90, 255], np.uint8), NOISE.shape[:2])
DEEP = np.random.default_rng(2).integers(0, 65536, NOISE.shape[:2], dtype=np.uint16)
RGB, RGBA = Image.fromarray(NOISE), Image.fromarray(np.dstack([NOISE, ALPHA]))
GREY, GREY_ALPHA = Image.fromarray(NOISE[..., 0]), Image.fromarray(np.dstack([NOISE[..., 0], ALPHA]))
WORKFLOW = '{"3": {"class_type": "KSampler", "text": "\N{CAT FACE} caf\N{LATIN SMALL LETTER E WITH ACUTE}"}}'


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _palette() -> Image.Image:
    return RGB.quantize(8)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_of_sixteen_bits() -> bytes:
    """RGB with 16 bits a channel, which Pillow reads and does not write."""
    levels = np.random.default_rng(3).integers(0, 65536, NOISE.shape).astype(">u2")
    head = struct.pack(">IIBBBBB", NOISE.shape[1], NOISE.shape[0], 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


LOSSLESS = {
    "rgb.png": _encoded(RGB),
    "rgba.png": _encoded(RGBA),
    "la.png": _encoded(GREY_ALPHA),
    "l.png": _encoded(GREY),
    "l-clear.png": _encoded(GREY, transparency=int(NOISE[0, 0, 0])),
    "rgb-clear.png": _encoded(RGB, transparency=tuple(map(int, NOISE[0, 0]))),
    "1.png": _encoded(GREY.convert("1")),
    "p.png": _encoded(_palette()),
    "p-clear.png": _encoded(_palette(), transparency=3),
    "p-alpha.png": _encoded(_palette(), transparency=bytes([0, 40, 255, 80])),
    "deep.png": _encoded(Image.fromarray(DEEP)),
    "deep-clear.png": _encoded(Image.fromarray(DEEP), transparency=int(DEEP[0, 0])),
    "sixteen.png": _png_of_sixteen_bits(),
    "rgb.bmp": _encoded(RGB, "BMP"),
    "l.bmp": _encoded(GREY, "BMP"),
    "rgb.webp": _encoded(RGB, "WEBP", lossless=True),
    "rgba.webp": _encoded(RGBA, "WEBP", lossless=True, exact=True),
    "rgb.tif": _encoded(RGB, "TIFF"),
    "rgba.tif": _encoded(RGBA, "TIFF", compression="tiff_lzw"),
    "la.tif": _encoded(GREY_ALPHA, "TIFF"),
    "1.tif": _encoded(GREY.convert("1"), "TIFF", compression="group4"),
    "deep.tif": _encoded(Image.fromarray(DEEP), "TIFF"),
    "long.tif": _encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "fractions.tif": _encoded(Image.fromarray((DEEP / 65535).astype(np.float32)), "TIFF"),
    "cmyk.tif": _encoded(RGB.convert("CMYK"), "TIFF"),
    "jpeg.tif": _encoded(RGB, "TIFF", compression="jpeg"),
}
BECOMES_PNG = {
    "rgb.jpg": _encoded(RGB, "JPEG"),
    "l.jpeg": _encoded(GREY, "JPEG"),
    "cmyk.jpg": _encoded(RGB.convert("CMYK"), "JPEG"),
    "rgb.webp": _encoded(RGB, "WEBP", quality=60),
    "rgba.webp": _encoded(RGBA, "WEBP", quality=60),
    "p.gif": _encoded(_palette(), "GIF"),
    "p-clear.gif": _encoded(_palette(), "GIF", transparency=3),
}


def _changed(pixels: Tensor) -> Tensor:
    """With a block of other colours."""
    other = pixels.clone()
    other[:, 1:3, 2:5] = 255 - other[:, 1:3, 2:5]
    other[0, 1, 2] ^= 1
    return other


def _kept(pixels: Tensor, other: Tensor) -> np.ndarray:
    return (pixels == other).all(0).numpy()


def _decoded(content: bytes | Path) -> np.ndarray:
    """What Pillow says of every pixel: RGBA, or the deep levels."""
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        return np.asarray(image).astype(np.float64) if deep else np.asarray(image.convert("RGBA"))


def _check_only_changed_pixels_changed(content: bytes, path: Path, file: PictureFile, other: Tensor) -> None:
    before, after = _decoded(content), _decoded(path)
    kept = _kept(file.pixels, other)
    assert 0 < kept.sum() < kept.size
    assert np.array_equal(before[kept], after[kept])
    assert not np.array_equal(before, after)
    if before.ndim == 3:
        assert np.array_equal(before[..., 3], after[..., 3])
    assert torch.equal(read_image(path), file.seen(other))


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_file_keeps_its_format_and_the_other_pixels(name: str, tmp_path: Path) -> None:
    content = LOSSLESS[name]
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    path = file.write(tmp_path, name, other, keep_format=False)
    assert path == tmp_path / name
    with Image.open(io.BytesIO(content)) as before, Image.open(path) as after:
        assert after.format == before.format
    _check_only_changed_pixels_changed(content, path, file, other)


@pytest.mark.parametrize("name", BECOMES_PNG)
def test_any_other_file_becomes_a_png_with_the_other_pixels(name: str, tmp_path: Path) -> None:
    content = BECOMES_PNG[name]
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    path = file.write(tmp_path, name, other, keep_format=False)
    assert path == tmp_path / f"{Path(name).stem}.png"
    with Image.open(path) as after:
        assert after.format == "PNG"
    _check_only_changed_pixels_changed(content, path, file, other)


@pytest.mark.parametrize("name", {**LOSSLESS, **BECOMES_PNG})
def test_an_unchanged_picture_is_seen_and_copied_as_it_is(name: str, tmp_path: Path) -> None:
    content = {**BECOMES_PNG, **LOSSLESS}[name]
    file = PictureFile.read(content)
    assert torch.equal(file.seen(file.pixels), read_image(content))
    for keep_format in (False, True):
        path = file.write(tmp_path, name, file.pixels.clone(), keep_format)
        assert path.name == name
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["rgb.png", "rgba.png", "rgb-clear.png", "p-alpha.png", "rgb.jpg", "sixteen.png"])
def test_new_colours_are_written_as_they_came(name: str, tmp_path: Path) -> None:
    file = PictureFile.read({**BECOMES_PNG, **LOSSLESS}[name])
    other = _changed(file.pixels)
    assert torch.equal(
        PictureFile.read(file.write(tmp_path, name, other, keep_format=False).read_bytes()).pixels, other
    )


@pytest.mark.parametrize("name", ["l.png", "la.png", "1.png", "deep.png", "fractions.tif"])
def test_a_grey_picture_stays_grey(name: str, tmp_path: Path) -> None:
    file = PictureFile.read(LOSSLESS[name])
    other = file.pixels.clone()
    other[:, 4, 5] = torch.tensor([200, 30, 90], dtype=torch.uint8)
    luma = (200 * 19595 + 30 * 38470 + 90 * 7471 + 0x8000) >> 16  # ITU-R BT.601, as Pillow rounds it
    written = PictureFile.read(file.write(tmp_path, name, other, keep_format=False).read_bytes())
    assert written.pixels[:, 4, 5].tolist() == [luma] * 3
    if name == "deep.png":
        assert written.levels[4, 5, 0] == luma * 257


def test_sixteen_bits_of_grey_are_shown_rounded() -> None:
    file = PictureFile.read(LOSSLESS["deep.png"])
    assert np.array_equal(file.pixels[1].numpy(), np.rint(DEEP / 257))


def test_a_bitmap_with_transparency_becomes_a_png(tmp_path: Path) -> None:
    content = _encoded(RGBA, "BMP")
    header = bytearray(content)
    assert header[14] == 40  # a header without masks: Pillow reads what it wrote itself as RGB
    masks = b"".join(int.to_bytes(mask, 4, "little") for mask in (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    header[14], header[10], header[30] = 56, 70, 3
    content = bytes(header[:54]) + masks + bytes(header[54:])
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    path = file.write(tmp_path, "a.bmp", other, keep_format=False)
    assert path.name == "a.png"
    _check_only_changed_pixels_changed(content, path, file, other)


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (LOSSLESS["rgb.png"], ()),
        (LOSSLESS["deep.png"], ()),
        (LOSSLESS["p-alpha.png"], ()),
        (LOSSLESS["sixteen.png"], ("16 bits a channel are read as 8",)),
        (BECOMES_PNG["rgb.jpg"], ()),
        (BECOMES_PNG["cmyk.jpg"], ("CMYK becomes RGB",)),
        (BECOMES_PNG["p.gif"], ("a GIF becomes a PNG, as it holds no more than 256 colours",)),
        (_encoded(RGB, "TIFF", save_all=True, append_images=[RGB]), ("of 2 pages the first is kept",)),
    ],
    ids=["rgb", "deep", "palette", "sixteen", "jpeg", "cmyk", "gif", "pages"],
)
def test_what_is_lost_is_said(content: bytes, notes: tuple[str, ...]) -> None:
    assert PictureFile.read(content).notes == notes


@pytest.mark.parametrize("name", ["rgb.jpg", "l.jpeg"])
def test_a_jpeg_may_stay_one_with_its_own_tables(name: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.kron(NOISE, np.ones((8, 8, 1), np.uint8)))
    content = _encoded(picture if name == "rgb.jpg" else picture.convert("L"), "JPEG", quality=83, subsampling=1)
    file = PictureFile.read(content)
    path = file.write(tmp_path, name, _changed(file.pixels), keep_format=True)
    with Image.open(io.BytesIO(content)) as before, Image.open(path) as after:
        assert isinstance(before, JpegImagePlugin.JpegImageFile)
        assert isinstance(after, JpegImagePlugin.JpegImageFile)
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == JpegImagePlugin.get_sampling(before)
        assert after.mode == before.mode
    assert path.name == name


def test_a_jpeg_of_inks_may_stay_a_jpeg_in_rgb(tmp_path: Path) -> None:
    file = PictureFile.read(BECOMES_PNG["cmyk.jpg"])
    with Image.open(file.write(tmp_path, "a.jpg", _changed(file.pixels), keep_format=True)) as after:
        assert (after.format, after.mode) == ("JPEG", "RGB")


def test_a_lossy_webp_may_stay_one_without_a_further_loss(tmp_path: Path) -> None:
    content = BECOMES_PNG["rgba.webp"]
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    path = file.write(tmp_path, "a.webp", other, keep_format=True)
    with Image.open(path) as after:
        assert after.format == "WEBP"
    _check_only_changed_pixels_changed(content, path, file, other)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("keep_format", [False, True])
def test_an_avif_becomes_a_png_or_stays_one(keep_format: bool, tmp_path: Path) -> None:
    content = _encoded(RGBA, "AVIF", quality=60, exif=_exif())
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    path = file.write(tmp_path, "a.avif", other, keep_format)
    assert path.suffix == (".avif" if keep_format else ".png")
    assert _exif_of(path)[0][0x010F] == "Camera"
    if not keep_format:
        _check_only_changed_pixels_changed(content, path, file, other)


@cache  # it says when it was made
def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(orientation: int | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0131] = "Camera", "align"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0steps: 20, sampler: Euler"
    if orientation is not None:
        exif[0x0112] = orientation
    return exif


def _exif_of(path: Path) -> tuple[dict[int, Any], Any]:
    with Image.open(path) as image:
        exif = image.getexif()
        return {tag: exif.get(tag) for tag in (0x010F, 0x0131, 0x0112)}, exif.get_ifd(0x8769).get(0x9286)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("keep_format", [False, True])
def test_profile_exif_and_resolution_are_kept(
    kind: str, orientation: int | None, keep_format: bool, tmp_path: Path
) -> None:
    content = _encoded(RGB, kind, icc_profile=_profile(), exif=_exif(orientation).tobytes(), dpi=(300, 300))
    file = PictureFile.read(content)
    path = file.write(tmp_path, f"a.{kind.lower()}", _changed(file.pixels), keep_format)
    with Image.open(path) as after:
        assert after.info["icc_profile"] == _profile()
        assert kind == "WEBP" or after.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    tags, comment = _exif_of(path)
    assert tags == {0x010F: "Camera", 0x0131: "align", 0x0112: None}
    assert comment == b"ASCII\0\0\0steps: 20, sampler: Euler"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_turned_picture_is_written_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    content = _encoded(RGB, kind, exif=_exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    file = PictureFile.read(content)
    other = _changed(file.pixels)
    assert torch.equal(file.seen(file.pixels), read_image(content))
    path = file.write(tmp_path, f"a.{kind.lower()}", other, keep_format=False)
    assert torch.equal(read_image(path), other / 255)


def test_a_profile_of_inks_is_dropped_and_said(tmp_path: Path) -> None:
    content = _encoded(RGB.convert("CMYK"), "JPEG", icc_profile=_profile(), exif=_exif())
    file = PictureFile.read(content)
    assert file.notes == ("CMYK becomes RGB, and its colour profile is dropped",)
    path = file.write(tmp_path, "a.jpg", _changed(file.pixels), keep_format=False)
    with Image.open(path) as after:
        assert "icc_profile" not in after.info
    assert _exif_of(path)[0][0x010F] == "Camera"


def _texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a red circle\nNegative prompt: blur\nSteps: 20, Sampler: Euler a")
    info.add_itxt("workflow", WORKFLOW, lang="en", tkey="flow")
    info.add_text("prompt", WORKFLOW, zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    return info


@pytest.mark.parametrize("orientation", [None, 6])
def test_what_generators_wrote_into_a_png_is_kept(orientation: int | None, tmp_path: Path) -> None:
    content = _encoded(RGB, pnginfo=_texts(), exif=_exif(orientation))
    file = PictureFile.read(content)
    path = file.write(tmp_path, "a.png", _changed(file.pixels), keep_format=False)
    with Image.open(io.BytesIO(content)) as before, Image.open(path) as after:
        assert isinstance(before, PngImagePlugin.PngImageFile)
        assert isinstance(after, PngImagePlugin.PngImageFile)
        for key in ("parameters", "workflow", "prompt"):
            assert after.text[key] == before.text[key]
        workflow, xmp = after.text["workflow"], after.info["xmp"]
        assert isinstance(workflow, PngImagePlugin.iTXt)
        assert (workflow.lang, workflow.tkey) == ("en", "flow")
        assert b"Orientation" not in xmp  # it was applied


def test_what_the_numbers_of_a_png_look_like_is_kept(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (45455).to_bytes(4, "big"))
    file = PictureFile.read(_encoded(RGB, pnginfo=info))
    with Image.open(file.write(tmp_path, "a.png", _changed(file.pixels), keep_format=False)) as after:
        assert after.info["gamma"] == 0.45455


def test_xmp_of_a_jpeg_goes_into_the_png(tmp_path: Path) -> None:
    file = PictureFile.read(_encoded(RGB, "JPEG", xmp=b"<x:xmpmeta/>"))
    with Image.open(file.write(tmp_path, "a.jpg", _changed(file.pixels), keep_format=False)) as after:
        assert after.info["xmp"] == b"<x:xmpmeta/>"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
def test_a_tiff_keeps_what_it_says_of_the_picture(compression: str, tmp_path: Path) -> None:
    said = {270: "a red circle", 315: "me", 700: b"<x:xmpmeta/>"}
    content = _encoded(RGB, "TIFF", tiffinfo=said, compression=compression, icc_profile=_profile())
    file = PictureFile.read(content)
    with Image.open(file.write(tmp_path, "a.tif", _changed(file.pixels), keep_format=False)) as after:
        exif = after.getexif()
        assert {tag: exif[tag] for tag in said} == said
        assert after.info["compression"] == compression.replace("tiff_deflate", "tiff_adobe_deflate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file is empty"),
        (b"<html>", "no image of a known format"),
        (LOSSLESS["rgb.png"][:60], "cannot be read as an image"),
        (_encoded(RGB, "GIF", save_all=True, append_images=[GREY.convert("RGB")]), "an animation of 2 frames"),
        (_encoded(Image.new("1", (20_000, 20_000))), "decompression bomb"),
        (_encoded(Image.fromarray(np.full((2, 2), 3, np.float32)), "TIFF"), "grey levels from 3 to 3"),
    ],
    ids=["empty", "text", "truncated", "animation", "bomb", "levels"],
)
def test_what_is_no_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PictureFile.read(content)


def test_pixels_of_another_size_are_refused(tmp_path: Path) -> None:
    file = PictureFile.read(LOSSLESS["rgb.png"])
    with pytest.raises(ValueError, match=r"shape \(3, 9, 13\) came for a picture of \(3, 9, 14\).*Resize"):
        file.write(tmp_path, "a.png", file.pixels[..., 1:], keep_format=False)


def test_a_name_without_a_known_ending_gets_one(tmp_path: Path) -> None:
    file = PictureFile.read(BECOMES_PNG["rgb.jpg"])
    assert (
        file.write(tmp_path, "sub/photo.v2", _changed(file.pixels), keep_format=False) == tmp_path / "sub/photo.v2.png"
    )
