"""The file of a reward's scores, `SLUG.parquet`, and what processes write beside it until it is complete."""

import fcntl
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator

from align.state import atomic_path

Key = tuple[str, str]
"""What an image's scores are found by: its id, and the fingerprint of the model that made it, if align made it."""

Scores = dict[Key, list[float]]
"""One score for each dimension, of the images that have one."""


def partials(final: Path) -> Path:
    """Where the processes write, batch by batch, what is not in the file yet."""
    return final.parent / f".{final.stem}"


def merge(final: Path, keys: Sequence[Key], dimensions: Sequence[str], accelerator: Accelerator) -> None:
    """Put into the file, in the order of `keys`, what the processes of this or of a killed run have scored."""
    if accelerator.is_main_process:
        parts = [_read_partial(path, dimensions) for path in sorted(partials(final).glob("*.jsonl"))]
        before = read_scores(final, dimensions)
        scores = before | {key: values for part in parts for key, values in part.items()}
        if scores != before:
            order = dict.fromkeys([*keys, *scores])
            _write_final(final, {key: scores[key] for key in order if key in scores}, dimensions)
        for path in partials(final).glob("*.jsonl"):
            path.unlink()
    accelerator.wait_for_everyone()


@contextmanager
def held(final: Path, accelerator: Accelerator) -> Generator[None, None, None]:
    """Hold the file against other commands, whose scores would be lost; the main process holds it for all.

    Raises:
        ValueError: Another command scores into it.
    """
    if not accelerator.is_main_process:
        yield
        return
    place = partials(final)
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY)
    try:
        _lock(descriptor, final)
        yield
        shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, final: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"Another command scores into {final}. Wait for it and run this again, or give another --output_dir."
        ) from error
    except OSError:
        return  # some network disks cannot hold a folder


def write_partial(file: TextIO, scores: Scores) -> None:
    """Add a batch to what a process has scored."""
    file.write(json.dumps([[*key, *values] for key, values in scores.items()]) + "\n")
    file.flush()


def _read_partial(path: Path, dimensions: Sequence[str]) -> Scores:
    """What a process had scored; a torn last line is left out."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    rows = [row for line in whole.splitlines() for row in json.loads(line)]
    if any(len(row) != 2 + len(dimensions) for row in rows):
        raise ValueError(
            f"{path}, which a stopped run left, has other dimensions than {list(dimensions)}. Delete it and run again."
        )
    return {(image_id, model): scores for image_id, model, *scores in rows}


def read_scores(path: Path, dimensions: Sequence[str]) -> Scores:
    """The scores in a file, none where it is not there.

    Raises:
        ValueError: It is damaged, or has other dimensions.
    """
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it and run again: it will be made anew.") from error
    expected = ["image_id", "model", *dimensions]
    if table.column_names != expected:
        raise ValueError(
            f"{path} has the columns {table.column_names} where {expected} belong. Move it away and run again."
        )
    return {(image_id, model): scores for image_id, model, *scores in zip(*table.to_pydict().values(), strict=True)}


def _write_final(path: Path, scores: Scores, dimensions: Sequence[str]) -> None:
    image_ids, models = zip(*scores, strict=True)
    columns = [pa.array(column, pa.float32()) for column in zip(*scores.values(), strict=True)]
    table = pa.table([pa.array(image_ids), pa.array(models), *columns], names=["image_id", "model", *dimensions])
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
