"""Images and prompts as a denoiser sees them, encoded once and kept on disk, so that memory is flat in their number."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

from align.log import Log
from align.model import TextToImage
from align.progress import Progress
from align.state import atomic_path, save_tensors

SHARD = 128
"""Rows in a file: what is in memory at once while encoding."""


@runtime_checkable
class Picture(Protocol):
    """An image file with its prompt."""

    @property
    def path(self) -> Path: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class CaptionedFile:
    """An image of a user's own, with its caption."""

    path: Path
    text: str


@dataclass(frozen=True)
class EncodedPictures:
    """Latents of images, in files.

    Attributes:
        folder: Holds `latents-SHARD.safetensors`.
        texts: The prompt of each image.
    """

    folder: Path
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def latents(self, images: Sequence[int]) -> Float[Tensor, "image channels latent_h latent_w"]:
        """The scaled latents of these images."""
        return torch.stack([_read_row(self.folder, "latents", image) for image in images])


@dataclass(frozen=True)
class EncodedPrompts:
    """Embeddings of prompts, each different one once, in files.

    Attributes:
        folder: Holds `embeddings-SHARD.safetensors`.
        rows: Where each prompt's embedding is in them.
    """

    folder: Path
    rows: Mapping[str, int]

    def embeddings(self, prompts: Sequence[str]) -> Float[Tensor, "prompt tokens dim"]:
        """The text embeddings of these prompts."""
        read = {prompt: _read_row(self.folder, "embeddings", self.rows[prompt]) for prompt in set(prompts)}
        return torch.stack([read[prompt] for prompt in prompts])


@torch.no_grad()
def encode_pictures(
    model: TextToImage,
    pictures: Sequence[Picture],
    folder: Path,
    batch_size: int,
    log: Log,
    accelerator: Accelerator,
) -> EncodedPictures:
    """Encode images below `folder`, `batch_size` at a time, each process its share of the files.

    Images of another size are scaled and cropped around their centre to the model's. What is there of the same files,
    unchanged, by the same model is kept, so that a killed run continues.

    Raises:
        ValueError: An image is missing or damaged.
    """
    folder = folder / _digest([model.fingerprint, *map(_state, pictures)])

    def latents(first: int, last: int) -> Tensor:
        images = [read_image(picture.path, model.resolution) for picture in pictures[first:last]]
        return model.encode_images(torch.stack(images).to(model.device))

    with log.progress(len(pictures), "encode images") as progress:
        _write_shards(folder, "latents", len(pictures), batch_size, latents, progress, accelerator)
    accelerator.wait_for_everyone()
    return EncodedPictures(folder, [picture.text for picture in pictures])


@torch.no_grad()
def encode_prompts(
    model: TextToImage, prompts: Sequence[str], folder: Path, batch_size: int, log: Log, accelerator: Accelerator
) -> EncodedPrompts:
    """Encode prompts below `folder`, each different one once, in the way of `encode_pictures`."""
    unique = list(dict.fromkeys(prompts))
    folder = folder / _digest([model.fingerprint, *unique])

    def embeddings(first: int, last: int) -> Tensor:
        return model.encode_prompts(unique[first:last])

    with log.progress(len(unique), "encode prompts") as progress:
        _write_shards(folder, "embeddings", len(unique), batch_size, embeddings, progress, accelerator)
    accelerator.wait_for_everyone()
    return EncodedPrompts(folder, {prompt: row for row, prompt in enumerate(unique)})


def _state(picture: Picture) -> tuple[str, int, int, str]:
    """Stands for a file as it is now, and its prompt."""
    stat = picture.path.stat()
    return str(picture.path), stat.st_size, stat.st_mtime_ns, picture.text


def _digest(rows: Iterable[object]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def read_imagefolder(folder: Path) -> list[CaptionedFile]:
    """The images of an imagefolder as Hugging Face datasets knows it, by the `text` in its metadata.jsonl.

    Not by that library itself, which counts its uses over the network, and looks for splits in the files' names.

    Raises:
        ValueError: No such folder or metadata, no image in it, or a line without an image that is there and its text.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Give an imagefolder: images, and a metadata.jsonl with a line for each, such as "
            '{"file_name": "a.png", "text": "a cat"}.'
        )
    lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a prompt may hold a separator of its own
    files = [_captioned(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not files:
        raise ValueError(f"{path} names no image. Give a folder with some, or leave it out.")
    return files


def _captioned(path: Path, number: int, line: str) -> CaptionedFile:
    try:
        row = json.loads(line)
        file, text = path.parent / row["file_name"], row["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}, line {number}: expected an object with "file_name" and "text".') from error
    if not isinstance(text, str) or not file.is_file():
        raise ValueError(f"{path}, line {number}: {file} must be a file, and its text a prompt, got {text!r}.")
    return CaptionedFile(file, text)


def read_image(path: Path, side: int) -> Float[Tensor, "3 side side"]:
    """An image file in [0, 1], upright, transparency on white, scaled and cropped around its centre to a square.

    Raises:
        ValueError: It is missing, or no image.
    """
    try:
        with Image.open(path) as image:
            upright = _on_white(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"The image {path} is missing or damaged ({error}). Restore it, or make it again.") from error
    square = upright if upright.size == (side, side) else ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB: what is under transparency is not seen, and scores are of what is."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _write_shards(
    folder: Path,
    kind: str,
    count: int,
    batch_size: int,
    encode_rows: Callable[[int, int], Tensor],
    progress: Progress,
    accelerator: Accelerator,
) -> None:
    """Write the rows `first` to `last` - 1 of each file that is not there yet, as `encode_rows` gives them."""
    for shard, start in enumerate(range(0, count, SHARD)):
        stop, path = min(start + SHARD, count), _shard(folder, kind, shard)
        if not path.exists() and shard % accelerator.num_processes == accelerator.process_index:
            edges = range(start, stop, batch_size)
            rows = torch.cat([encode_rows(edge, min(edge + batch_size, stop)).cpu() for edge in edges])
            with atomic_path(path) as temporary:
                save_tensors({kind: rows}, temporary)
        progress.update(stop - start)


def _read_row(folder: Path, kind: str, row: int) -> Tensor:
    with safe_open(_shard(folder, kind, row // SHARD), framework="pt") as file:
        return file.get_slice(kind)[row % SHARD]


def _shard(folder: Path, kind: str, shard: int) -> Path:
    return folder / f"{kind}-{shard:05d}.safetensors"
