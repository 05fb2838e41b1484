"""Images of any origin with their prompts, ready to be scored: folders, globs, files, parquet tables and tar shards.

Prompts come with the images (`metadata.jsonl`, `.csv` or `.parquet` of an imagefolder, a column of the table, KEY.txt
or KEY.json in the shard), from one file for all of them, or one prompt holds for all.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align.samples import SampleStore, prompt_id
from recipes.image_sources import OURS, Found, read_file, read_folder, read_parquet, read_tar
from recipes.image_texts import Captions
from rewards.image_file import SUFFIXES, has_transparency, read_image

FOREIGN = ""
"""In place of the fingerprint of a model: the image is known by its content."""


@dataclass(frozen=True)
class Item:
    """One image to score.

    Attributes:
        name: How a reader would look for it: the file, the shard's member, or the table's row.
        key: What its scores are found by.
        text: Its prompt.
        found: Reads it.
    """

    name: str
    key: tuple[str, str]
    text: str
    found: Found

    def image(self) -> Float[Tensor, "3 h w"]:
        """The picture.

        Raises:
            ValueError: It cannot be read.
        """
        return read_image(self.found.read())


def sample_items(store: SampleStore) -> list[Item]:
    """The images of a store that `align generate` wrote, in its order."""
    return [
        Item(
            os.path.relpath(row.path, store.folder),
            (row.image_id, row.model),
            row.text,
            Found(str(row.path), row.text, row.path.read_bytes),
        )
        for row in store.rows()
    ]


def foreign_items(store: SampleStore) -> list[Item]:
    """The images of another run's store, known by their content: that run may draw others under the same names."""
    items = sample_items(store)
    return [replace(item, key=(f"{_digest(item.found)}-{prompt_id(item.text)}", FOREIGN)) for item in items]


def find_items(images: Sequence[str], captions: Captions, out: Path | None = None) -> list[Item]:
    """The images that the names on a command line stand for, in the order of the names, but for those below `out`.

    An image is known by the digest of its file and of its prompt: moved or renamed it keeps its scores, changed it does
    not.

    Raises:
        ValueError: A name that stands for nothing, no image at all, or an image without a prompt.
    """
    found = list({one.name: one for name in images for one in _find(name) if not _is_below(one.name, out)}.values())
    if not found:
        raise ValueError(f"There is no image in {', '.join(images)}. Files must end in one of {', '.join(SUFFIXES)}.")
    return [
        Item(one.name, (f"{_digest(one)}-{prompt_id(text)}", FOREIGN), text, one)
        for one, text in zip(found, captions.of(found), strict=True)
    ]


def _is_below(name: str, folder: Path | None) -> bool:
    return folder is not None and Path(name).resolve().is_relative_to(folder.resolve())


def store_of(images: Sequence[str]) -> SampleStore | None:
    """The store that a single name stands for: a run, which has one in `samples/`, or the store itself."""
    if len(images) != 1:
        return None
    folders = (Path(images[0]) / "samples", Path(images[0]))
    return next((SampleStore(folder) for folder in folders if (folder / "generation.json").is_file()), None)


def count_transparent(items: Sequence[Item]) -> int:
    """How many of the images are flattened on white."""
    return sum(has_transparency(_content(item.found)) for item in items)


def _content(found: Found) -> bytes:
    """An empty file stands for one that cannot be opened, which is reported when it should be scored."""
    try:
        return found.read()
    except OSError:
        return b""


def _digest(found: Found) -> str:
    return hashlib.sha256(_content(found)).hexdigest()[:32]


def _find(name: str) -> Iterator[Found]:
    path = Path(name)
    if path.is_dir():
        yield from read_folder(path)
    elif path.suffix == ".parquet" and path.is_file():
        yield from read_parquet(path)
    elif path.suffix == ".tar" and path.is_file():
        yield from read_tar(path)
    elif path.is_file():
        yield read_file(path)
    else:
        yield from _expand(name)


def _is_meant(path: Path) -> bool:
    """Of what a glob takes in: images, and what holds some."""
    if path.is_dir():
        return path.name not in OURS
    return path.suffix.lower() in (*SUFFIXES, ".parquet", ".tar")


def _expand(pattern: str) -> Iterator[Found]:
    """What a glob stands for."""
    names = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []
    names = [name for name in names if _is_meant(Path(name))]
    if not names:
        raise ValueError(
            f"There is nothing called {pattern}. Give a folder, an image, a .parquet or .tar file, or a quoted glob."
        )
    for name in names:
        yield from _find(name)
