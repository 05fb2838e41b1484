"""The image store: a folder of shards that is a valid Hugging Face imagefolder, and the export of a selection of it."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.state import atomic_path, read_json, write_json

SHARD_SIZE = 1000
"""Images in a shard, at most: a folder that file systems and people still like to list."""

THREADS = 4
"""Threads that encode, decode and copy files; zlib works without Python's lock."""

_COLUMNS = ("file_name", "text", "prompt_id", "sample_index", "seed", "model")


@dataclass(frozen=True)
class SampleRow:
    """One generated image: where it is, and what it was made from.

    Attributes:
        path: The PNG file, `STORE/SHARD/IMAGE_ID.png`.
        text: The prompt.
        prompt_id: The prompt's hash, see `prompt_id`.
        sample_index: Which of the prompt's images this is, from 0.
        seed: The seed of its noise, below 2^53.
        model: The fingerprint of the model that made it.
    """

    path: Path
    text: str
    prompt_id: str
    sample_index: int
    seed: int
    model: str

    @property
    def image_id(self) -> str:
        """`PROMPT_ID-SAMPLE_INDEX`, the key of scores; the same for each model, so that pairs can be matched."""
        return image_id(self.prompt_id, self.sample_index)


@final
class SampleStore:
    """Generated images in shards `00000/`, `00001/`, ... of at most 1,000, in the order of prompts and samples.

    A shard holds `IMAGE_ID.png` files, their `metadata.jsonl`, and the marker `_SUCCESS`, written last.
    `generation.json` beside the shards says what they were made from, so that two experiments are never mixed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, record: Mapping[str, Any]) -> None:
        """Bind the folder to one experiment, or check that it is bound to this one.

        Arguments:
            record: All that decides the images, as JSON values; "images" is their number.

        Raises:
            ValueError: The folder holds images that were made from something else; the message shows the difference.
        """
        path = self.folder / "generation.json"
        before: dict[str, Any] = read_json(path) if path.exists() else {}
        if before == record:
            return
        if next(self.folder.glob("*/*.png"), None):
            changed = [key for key in {**before, **record} if before.get(key) != record.get(key)]
            raise ValueError(
                f"{self.folder} holds the images of another experiment, and adding to them would mix the two. The "
                f"difference: {'; '.join(f'{key} was {before.get(key)}, is {record.get(key)}' for key in changed)}. "
                "Go back to the former settings to continue that one, or choose another folder."
            )
        write_json(path, dict(record))

    def shards(self, images: int) -> list[range]:
        """The positions of the images of each shard, of so many images in all."""
        positions = range(images)
        return [positions[start : start + SHARD_SIZE] for start in positions[::SHARD_SIZE]]

    def row(self, position: int, text: str, sample_index: int, seed: int, model: str) -> SampleRow:
        """The row of the image at `position` in the store's order."""
        prompt = prompt_id(text)
        path = self._shard(position) / f"{image_id(prompt, sample_index)}.png"
        return SampleRow(path, text, prompt, sample_index, seed, model)

    def has(self, rows: Sequence[SampleRow]) -> bool:
        """Whether all these images are on disk, complete."""
        return all(_is_complete_png(row.path) for row in rows)

    def write(self, rows: Sequence[SampleRow], images: Float[Tensor, "batch 3 h w"]) -> None:
        """Write images as 8-bit PNG files, each atomically."""
        pixels = (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(_write_png, [row.path for row in rows], pixels))

    def is_sealed(self, position: int) -> bool:
        """Whether the shard of the image at `position` is complete, images and metadata."""
        return (self._shard(position) / "_SUCCESS").exists()

    def seal(self, rows: Sequence[SampleRow]) -> None:
        """Complete a shard, given all its rows: its metadata, then its marker."""
        shard = rows[0].path.parent
        _write_metadata(shard / "metadata.jsonl", rows, {})
        with atomic_path(shard / "_SUCCESS") as temporary:
            temporary.touch()

    def rows(self) -> list[SampleRow]:
        """All rows of a complete store, in its order.

        Raises:
            ValueError: The folder is no store, its generation was not finished, or a metadata file is damaged.
        """
        record = self.folder / "generation.json"
        if not record.exists():
            raise ValueError(
                f"{self.folder} is not a folder of generated samples: it has no generation.json. "
                "Generate into it first, or give the folder that `align generate` wrote."
            )
        expected = read_json(record)["images"]
        rows = [row for marker in sorted(self.folder.glob("*/_SUCCESS")) for row in _read_metadata(marker.parent)]
        if len(rows) != expected:
            raise ValueError(
                f"{self.folder} has {len(rows):,} images in finished shards, of {expected:,}. "
                "Run the command that generates them again: it continues where it stopped."
            )
        return rows

    def load(self, rows: Sequence[SampleRow]) -> Float[Tensor, "batch 3 h w"]:
        """The images of rows, in [0, 1], on the CPU.

        Raises:
            ValueError: An image is missing or damaged.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(_read_png, [row.path for row in rows])))

    def _shard(self, position: int) -> Path:
        return self.folder / f"{position // SHARD_SIZE:05d}"


def prompt_id(prompt: str) -> str:
    """16 hexadecimal digits that stand for the prompt's text."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()


def image_id(prompt: str, sample_index: int) -> str:
    """The key of a prompt's (by its id) `sample_index`-th image, also the stem of its file."""
    return f"{prompt}-{sample_index:04d}"


def export_imagefolder(rows: Sequence[SampleRow], scores: Mapping[str, Sequence[float]], out: Path) -> None:
    """Copy images to a new imagefolder `out`, atomically; diffusers' training scripts take it as it is.

    Arguments:
        rows: The images to copy.
        scores: Columns to put beside them in `metadata.jsonl`, by name, one number for each row.
        out: The folder to write; one that is there is replaced.

    Raises:
        ValueError: No rows; a column of another length, with a value that is not finite, or with a name that is taken.
    """
    if not rows:
        raise ValueError(f"There is no image to write to {out}; a training set needs at least one. Select more.")
    _check_columns(len(rows), scores)
    assert len({row.image_id for row in rows}) == len(rows), "an image was selected twice, or from two models"
    with atomic_path(out) as temporary:
        temporary.mkdir()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda row: shutil.copyfile(row.path, temporary / row.path.name), rows))
        _write_metadata(temporary / "metadata.jsonl", rows, scores)


def _check_columns(count: int, scores: Mapping[str, Sequence[float]]) -> None:
    for name, values in scores.items():
        if name in _COLUMNS:
            raise ValueError(
                f"A score is called {name!r}, which is a column of every sample ({', '.join(_COLUMNS)} are). Rename it."
            )
        if len(values) != count:
            raise ValueError(f"The scores {name!r} are {len(values)}, for {count} images; give one for each image.")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"The scores {name!r} are not all finite. Leave out the images that could not be scored.")


def _columns(row: SampleRow) -> dict[str, Any]:
    return {"file_name": row.path.name, **{name: getattr(row, name) for name in _COLUMNS[1:]}}


def _write_metadata(path: Path, rows: Sequence[SampleRow], scores: Mapping[str, Sequence[float]]) -> None:
    lines = [
        {**_columns(row), **{name: float(values[index]) for name, values in scores.items()}}
        for index, row in enumerate(rows)
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_metadata(shard: Path) -> list[SampleRow]:
    path = shard / "metadata.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [SampleRow(shard / line["file_name"], *(line[name] for name in _COLUMNS[1:])) for line in lines]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). "
            f"Delete {shard / '_SUCCESS'} and run the command that generates again: it rewrites the file."
        ) from error


def _write_png(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _read_png(path: Path) -> Float[Tensor, "3 h w"]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"The image {path} is missing or damaged ({error}). Delete {path.parent / '_SUCCESS'} and generate again."
        ) from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _is_complete_png(path: Path) -> bool:
    """Whether the file is there, to its end, with the checksums of a PNG."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True
