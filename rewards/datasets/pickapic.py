"""Images and captions of Pick-a-Pic v1 (arXiv 2305.01569), found by their uid in the data set's parquet files.

A row compares two images: columns image_0_uid, image_1_uid, jpg_0, jpg_1 (encoded images) and caption.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow.dataset as arrow
from pyarrow import ArrowException

SUFFIXES = (".jpg", ".txt")
"""Of an image, and of its caption."""

COLUMNS = ("caption", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1")


def absent(uids: Collection[str], folder: Path) -> list[str]:
    """The images that `folder` lacks."""
    return [uid for uid in uids if not all((folder / f"{uid}{suffix}").is_file() for suffix in SUFFIXES)]


def extract(shards: Sequence[Path], uids: Collection[str], folder: Path) -> None:
    """Copy images out of the shards, each once: UID.jpg as it is stored, and its caption in UID.txt.

    The files are streamed: what is in memory is a few rows. It can be stopped at any time and goes on where it was.

    Raises:
        ValueError: Files that are no parquet, or without the columns of Pick-a-Pic.
    """
    wanted = set(absent(uids, folder))
    folder.mkdir(parents=True, exist_ok=True)
    for uid, image, caption in _found(shards, wanted) if wanted else ():
        if uid in wanted:
            # The caption last and whole: an image without one is not there yet.
            _write(folder / f"{uid}.jpg", image)
            _write(folder / f"{uid}.txt", caption.encode())
            wanted.remove(uid)


def _found(shards: Sequence[Path], wanted: Collection[str]) -> Iterator[tuple[str, bytes, str]]:
    """The uid, image and caption of the rows that show a wanted image."""
    try:
        rows = arrow.dataset([str(shard) for shard in shards], format="parquet")
        uids, keys = list(wanted), ("image_0_uid", "image_1_uid")
        either = arrow.field(keys[0]).isin(uids) | arrow.field(keys[1]).isin(uids)
        batches = rows.scanner(
            columns=list(COLUMNS), filter=either, batch_size=64, batch_readahead=1, fragment_readahead=1
        ).to_batches()
        for row in (row for batch in batches for row in batch.to_pylist()):
            sides = ((row[f"image_{side}_uid"], row[f"jpg_{side}"], row["caption"]) for side in (0, 1))
            yield from (side for side in sides if None not in side)
    except ArrowException as error:
        raise ValueError(
            f"{shards[0].parent} must hold parquet files of Pick-a-Pic with the columns {', '.join(COLUMNS)}: {error}"
        ) from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
