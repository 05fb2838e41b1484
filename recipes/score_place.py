"""Where the table and the page of scores go, and what they must not replace."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TABLE, REPORT = "all.parquet", "report.html"
COLUMNS = ("name", "text")
"""Of the table of all scores, before those of the rewards."""


def check_place(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write over what is not ours: an input, a folder, or a file that scoring did not write.

    Raises:
        ValueError: It says which.
    """
    for name, is_ours in ((TABLE, _is_our_table), (REPORT, _is_our_page)):
        path = folder / name
        if path.exists() and (path.resolve() in {one.resolve() for one in inputs} or not is_ours(path)):
            raise ValueError(
                f"{path} was not written by align score and would be overwritten. Give another --output_dir."
            )


def _is_our_table(path: Path) -> bool:
    try:
        return path.is_file() and tuple(pq.read_schema(path).names[:2]) == COLUMNS
    except (OSError, pa.ArrowException):
        return False


def _is_our_page(path: Path) -> bool:
    return path.is_file() and b"Written by align" in path.read_bytes()
