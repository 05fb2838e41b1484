"""Encoded images and prompts: those of the model, read back one by one, and continued where a run was killed."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from align import encoded
from align.encoded import (
    CaptionedFile,
    EncodedPictures,
    EncodedPrompts,
    encode_pictures,
    encode_prompts,
    read_image,
    read_imagefolder,
)
from align.generate import generate
from align.log import Log
from align.model import Sampling, TextToImage
from align.samples import SampleStore
from rewards import image_file

PROMPTS = ["a cat", "two dogs", "a red house"]


@pytest.fixture
def store(tiny_model: TextToImage, tmp_path: Path, log: Log) -> SampleStore:
    return generate(tiny_model, PROMPTS, 2, tmp_path / "samples", 0, 6, Sampling(2, 2.0), log, Accelerator(cpu=True))


def encode_in(folder: Path, model: TextToImage, store: SampleStore, log: Log) -> tuple[EncodedPictures, EncodedPrompts]:
    pictures = encode_pictures(model, store.rows(), folder, 2, log, Accelerator(cpu=True))
    return pictures, encode_prompts(model, ["", *pictures.texts], folder, 2, log, Accelerator(cpu=True))


@pytest.mark.parametrize("shard", [128, 3, 1])
def test_encoded_data_are_those_of_the_model(
    shard: int, tiny_model: TextToImage, store: SampleStore, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "SHARD", shard)
    rows, (data, prompts) = store.rows(), encode_in(tmp_path / "e", tiny_model, store, log)
    order = [4, 0, 5, 4]
    expected = tiny_model.encode_images(store.load([rows[index] for index in order]))
    torch.testing.assert_close(data.latents(order), expected)
    assert (len(data), list(data.texts)) == (6, [prompt for prompt in PROMPTS for _ in range(2)])
    asked = ["", PROMPTS[2], PROMPTS[2], PROMPTS[0]]
    torch.testing.assert_close(prompts.embeddings(asked), tiny_model.encode_prompts(asked))
    assert len(prompts.rows) == 4


def test_what_is_encoded_is_not_encoded_again(
    tiny_model: TextToImage, store: SampleStore, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "SHARD", 2)
    encode_in(tmp_path / "e", tiny_model, store, log)
    before = {path: path.read_bytes() for path in (tmp_path / "e").rglob("*.safetensors")}
    (lost,) = (tmp_path / "e").rglob("latents-00001.safetensors")
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in before if path != lost}
    encode_in(tmp_path / "e", tiny_model, store, log)
    assert {path: path.read_bytes() for path in (tmp_path / "e").rglob("*.safetensors")} == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_other_files_are_encoded_anew(tiny_model: TextToImage, tmp_path: Path, log: Log) -> None:
    """A user's folder may change while a run is stopped: no picture may come under another's caption."""
    folder, seen = tmp_path / "images", list[torch.Tensor]()
    folder.mkdir()
    for level in (0, 255):
        Image.new("RGB", (16, 16), (level, level, level)).save(folder / "a.png")
        files = [CaptionedFile(folder / "a.png", "a")]
        data = encode_pictures(tiny_model, files, tmp_path / "e", 2, log, Accelerator(cpu=True))
        seen.append(data.latents([0]))
    assert not torch.allclose(seen[0], seen[1])


def test_prompts_with_a_word_that_means_something_else_now_are_encoded_anew(
    fresh_model: TextToImage, tmp_path: Path, log: Log
) -> None:
    seen: list[torch.Tensor] = []
    for start in ("ugly", "fair", "ugly"):
        fresh_model.add_token("<it>", start).requires_grad_(False)
        prompts = encode_prompts(fresh_model, ["<it>"], tmp_path / "e", 2, log, Accelerator(cpu=True))
        seen.append(prompts.embeddings(["<it>"]))
        fresh_model.remove_token("<it>")
    assert not torch.allclose(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("size", [(16, 16), (40, 16), (16, 40), (10, 6), (300, 200)])
def test_an_image_of_any_size_becomes_the_models_square(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 16)
    assert pixels.shape == (3, 16, 16) and pixels.amin() >= 0 and pixels.amax() <= 1
    assert pixels[0, :, 2].mean() > 0.9 and pixels[2, :, -3].mean() > 0.9  # left stays left, and the middle the middle


def test_an_upright_image_of_a_camera_is_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (16, 16)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 16, 4))
    exif[0x0112] = 6  # turn clockwise by a quarter to look at it
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", 16)[:, :, -4:].mean() == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white_as_where_images_are_scored(mode: str, tmp_path: Path) -> None:
    image, exif = Image.new("RGBA", (16, 16), (200, 100, 50, 255)), Image.Exif()
    image.paste((0, 255, 0, 0), (0, 0, 16, 4))  # a colour that nobody sees
    exif[0x0112] = 6
    (image.quantize() if mode == "P" else image.convert(mode)).save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png", 16)
    assert pixels[:, :, -4:].min() == 1 and pixels[:, :, :-4].max() < 0.9
    assert torch.equal(pixels, image_file.read_image(tmp_path / "a.png"))


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png is missing or damaged"):
        read_image(tmp_path / "a.png", 16)


def folder_with(tmp_path: Path, metadata: str) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    if metadata:
        (folder / "metadata.jsonl").write_text(metadata)
    return folder


def test_an_imagefolder_gives_files_with_their_text(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        '{"file_name": "one.png", "text": "a"}\n{"file_name": "two.png", "text": "b", "score": 1}\n'.replace(
            '"a"}', '"a", "score": 2}'
        ),
    )
    assert read_imagefolder(folder) == [CaptionedFile(folder / "one.png", "a"), CaptionedFile(folder / "two.png", "b")]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("", r"metadata\.jsonl does not exist. Give an imagefolder"),
        ('{"file_name": "one.png", "caption": "a"}', 'line 1: expected an object with "file_name" and "text"'),
        ('{"file_name": "one.png", "text": "a"}\n["two.png"]', "line 2: expected an object"),
        ('{"file_name": "one.png", "text": null}', "one.png must be a file, and its text a prompt, got None"),
        ('{"file_name": "three.png", "text": "a"}', "three.png must be a file"),
    ],
)
def test_an_imagefolder_without_captions_is_refused(tmp_path: Path, metadata: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_imagefolder(folder_with(tmp_path, metadata))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_caption_may_hold_what_else_ends_a_line(separator: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    text = f"a cat{separator}at night"
    row = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    assert [file.text for file in read_imagefolder(tmp_path)] == [text, text]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="names no image"):
        read_imagefolder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.metadata\.jsonl does not exist. Give an imagefolder"):
        read_imagefolder(tmp_path / "nowhere")
