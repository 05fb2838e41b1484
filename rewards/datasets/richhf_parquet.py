"""Mirrors of RichHF-18K that are joined with its images already: parquet files, one row an image.

Columns: filename (train/UUID.png), image (encoded), prompt or caption, the four scores, the two maps (encoded, or rows
of levels: whole numbers up to 255, or fractions up to 1) and prompt_misalignment_label. Files of a split are
`SPLIT-*.parquet` anywhere below the folder.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, load_dataset
from datasets.exceptions import DatasetsError
from jaxtyping import Float
from pyarrow import ArrowException
from torch import Tensor

from rewards.datasets.rich_feedback import Problem, RichFeedback, checked, decode_map
from rewards.datasets.richhf import FILENAME, LABELS, MAP_COLUMNS, SCORE_COLUMNS, labelled, uid_of
from rewards.image_file import read_image

IMAGE, PROMPTS = "image", ("prompt", "caption")


def read_richhf_parquet(
    folder: Path, split: str, problems: list[Problem], cache_dir: Path | None = None
) -> Iterator[RichFeedback]:
    """The rows of a split; bad ones go to `problems`.

    The `datasets` library turns the files into one that is mapped to memory, once, in `cache_dir` (None for its usual
    place): images and maps are read from there when they are used.

    Raises:
        ValueError: At once, no files of that split, or files without a column.
    """
    files = sorted(str(path) for path in folder.rglob(f"{split}-*.parquet"))
    if not files:
        there = sorted({path.name.split("-")[0] for path in folder.rglob("*-*.parquet")})
        raise ValueError(f"{folder} has no {split}-*.parquet; the splits there are {there}. Name one of them.")
    try:
        rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache_dir) if cache_dir else None)
    except (DatasetsError, ArrowException) as error:
        raise ValueError(
            f"The files {split}-*.parquet in {folder} cannot be read ({error}). Fetch them again."
        ) from error
    prompt = _prompt_column(rows.column_names, folder)
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return checked(_rows(rows, prompt), problems)


def _prompt_column(names: list[str], folder: Path) -> str:
    """The column of the prompts; the others must be there."""
    needed = (FILENAME, IMAGE, *SCORE_COLUMNS.values(), *MAP_COLUMNS.values(), LABELS)
    prompts = [name for name in PROMPTS if name in names]
    missing = [name for name in needed if name not in names] + ([] if prompts else [" or ".join(PROMPTS)])
    if missing:
        raise ValueError(
            f"The parquet files in {folder} have the columns {names}; {', '.join(missing)} must be there, too."
        )
    return prompts[0]


def _rows(rows: Dataset, prompt: str) -> Iterator[tuple[str, Callable[[], RichFeedback]]]:
    heavy = {name: rows.select_columns([name]) for name in (IMAGE, *MAP_COLUMNS.values())}
    light = rows.select_columns([FILENAME, prompt, LABELS, *SCORE_COLUMNS.values()])
    for number in range(len(rows)):
        yield f"row {number}", partial(_row, light[number], prompt, heavy, number)


def _row(light: Mapping[str, Any], prompt: str, heavy: Mapping[str, Dataset], number: int) -> RichFeedback:
    uid, text = uid_of(_text(light, FILENAME)), _text(light, prompt)
    labels = light[LABELS]
    try:
        words, misaligned = labelled(text, " ".join(map(str, labels)) if isinstance(labels, list) else str(labels))
        scores = {name: _score(light, column) for name, column in SCORE_COLUMNS.items()}
    except ValueError as error:
        raise ValueError(f"{uid}: {error}") from error
    maps = {name: partial(_map, heavy[column], number) for name, column in MAP_COLUMNS.items()}
    return RichFeedback(uid, text, words, misaligned, scores, maps, partial(_image, heavy[IMAGE], number))


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise ValueError(f"its {column} is {row[column]}; it must be a text.")
    return row[column]


def _score(row: Mapping[str, Any], column: str) -> float:
    if not isinstance(row[column], float):
        raise ValueError(f"its {column} is {row[column]}; it must be a number.")
    return row[column]


def _stored(rows: Dataset, number: int) -> Any:
    """What stands in the only column: bytes also where they are beside a path."""
    (value,) = rows[number].values()
    return value["bytes"] if isinstance(value, dict) and "bytes" in value else value


def _image(rows: Dataset, number: int) -> Float[Tensor, "3 _ _"]:
    stored = _stored(rows, number)
    if not isinstance(stored, bytes):
        raise ValueError(f"The column {IMAGE} holds {type(stored).__name__}; it must hold the bytes of an image file.")
    return read_image(stored)


def _map(rows: Dataset, number: int) -> Float[Tensor, "_ _"]:
    stored = _stored(rows, number)
    if isinstance(stored, bytes):
        return decode_map(stored)
    levels = np.squeeze(np.asarray(stored))
    if levels.ndim != 2:
        raise ValueError(f"a heatmap has the shape {levels.shape}; it must be an encoded image or rows of levels.")
    return torch.from_numpy(levels.astype(np.float32) / (255 if np.issubdtype(levels.dtype, np.integer) else 1))
