"""Where images and their captions are found: an imagefolder, a parquet table, a tar shard. Nothing is decoded here."""

import csv
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewards.image_file import SUFFIXES

TEXT = ("text", "prompt", "caption")
"""What the column of the prompts may be called."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OURS = ("scores", "heatmaps")
"""Folders that scoring itself writes."""


@dataclass(frozen=True)
class Found:
    """An image that was found.

    Attributes:
        name: How a reader would look for it.
        text: The prompt that stands beside it, if one does.
        read: Its encoded bytes; safe in threads.
    """

    name: str
    text: str | None
    read: Callable[[], bytes]


def read_folder(folder: Path) -> Iterator[Found]:
    """The images in a folder and below it, sorted, each with what the metadata beside it (or above) says."""
    texts: dict[Path, str] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in OURS)
        here = Path(place)
        texts |= captions_of(here)
        for name in sorted(names):
            path = here / name
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Found(str(path), texts.get(path), path.read_bytes)


def read_file(path: Path) -> Found:
    """One image, with what the metadata beside it says."""
    return Found(str(path), captions_of(path.parent).get(path), path.read_bytes)


def captions_of(folder: Path) -> dict[Path, str]:
    """From the files that a folder's metadata name to their prompts."""
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    return _captions(path, path.stat().st_mtime_ns) if path else {}


def column_of(source: Path, name: str) -> dict[str, float]:
    """The numbers of one column, by the names of the images: of a parquet table, or of a folder's own metadata.

    Raises:
        ValueError: No metadata, no such column, or one that does not hold numbers.
    """
    path = source if source.suffix == ".parquet" else next((p for m in METADATA if (p := source / m).is_file()), None)
    if path is None:
        raise ValueError(f"{source} has no {' or '.join(METADATA)}, so there is no column {name!r} of scores.")
    known = pq.read_schema(path).names if path.suffix == ".parquet" else [key for row in _rows(path)[:1] for key in row]
    if name not in known:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(known)}.")
    try:
        if path == source:
            values = pq.read_table(path, columns=[name])[name].to_pylist()
            return {f"{path}#{row}": float(value) for row, value in enumerate(values) if value is not None}
        return {str(source / row["file_name"]): float(row[name]) for row in _rows(path) if row.get(name) is not None}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the column {name!r} must hold a number for each image ({error!r}).") from error


@lru_cache(maxsize=64)
def _captions(path: Path, changed_ns: int) -> dict[Path, str]:
    """Read once, as long as the file does not change."""
    del changed_ns
    folder = path.parent
    try:
        rows = _rows(path)
        return {folder / str(row["file_name"]): text for row in rows if (text := text_of(row)) is not None}
    except (OSError, ValueError, KeyError, TypeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(
            f'{path} must have a "file_name" and a "text" in each row ({type(error).__name__}: {error}). Mend it.'
        ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    return pq.read_table(path).to_pylist()


def text_of(row: Mapping[str, Any]) -> str | None:
    """The prompt of a row, under any of its usual names.

    Raises:
        ValueError: It is no text, such as a list of several.
    """
    text = next((row[name] for name in TEXT if row.get(name) is not None), None)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a prompt must be one text, not {text!r}")
    return text


def read_parquet(path: Path) -> Iterator[Found]:
    """The rows of a table with a column of encoded images, as `datasets` writes it; one row group in memory."""
    try:
        file = pq.ParquetFile(path)
        column = _image_column(path, file.schema_arrow)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file, or a damaged one ({error}). Restore it.") from error
    text = next((name for name in TEXT if name in file.schema_arrow.names), None)
    row = 0
    for group in range(file.num_row_groups):
        texts = file.read_row_group(group, columns=[text])[text].to_pylist() if text else None
        for index in range(file.metadata.row_group(group).num_rows):
            caption = None if texts is None else text_of({TEXT[0]: texts[index]})
            yield Found(f"{path}#{row}", caption, partial(_cell, str(path), column, group, index))
            row += 1


def _image_column(path: Path, schema: Any) -> str:
    """The column whose cells are structures with `bytes`, or plain bytes."""
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return field.name
        if field.name in ("image", "jpg", "png") and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return field.name
    raise ValueError(
        f"{path} has the columns {', '.join(schema.names)}; none holds images. One must be a structure with `bytes`, "
        "as datasets.Image writes it."
    )


def _cell(path: str, column: str, group: int, index: int) -> bytes:
    cell = _group(path, column, group)[index].as_py()
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


@lru_cache(maxsize=2)
def _group(path: str, column: str, group: int) -> pa.ChunkedArray:
    return pq.ParquetFile(path).read_row_group(group, columns=[column])[column]


def read_tar(path: Path) -> Iterator[Found]:
    """The images of a WebDataset shard, each with the text of KEY.txt or of KEY.json."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} is no tar file, or a damaged or compressed one ({error}). Unpack it.") from error
    by_name = {member.name: member for member in members}
    for member in members:
        key, suffix = os.path.splitext(member.name)
        is_hidden = os.path.basename(member.name).startswith(".") or member.name.startswith("__MACOSX")
        if suffix.lower() in SUFFIXES and not is_hidden:
            yield Found(f"{path}/{member.name}", _tar_text(path, key, by_name), partial(_part, path, member))


def _tar_text(path: Path, key: str, members: Mapping[str, tarfile.TarInfo]) -> str | None:
    if f"{key}.txt" in members:
        return _part(path, members[f"{key}.txt"]).decode("utf-8", errors="replace").strip()
    if f"{key}.json" not in members:
        return None
    try:
        content = json.loads(_part(path, members[f"{key}.json"]))
    except ValueError as error:
        raise ValueError(f"{path}: {key}.json is no JSON ({error}). Mend it.") from error
    return text_of(content) if isinstance(content, dict) else None


def _part(path: Path, member: tarfile.TarInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)
