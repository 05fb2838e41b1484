"""The rows of rich feedback that a recipe works on."""

import sys
from pathlib import Path

from rewards.datasets.rich import read_rich_feedback
from rewards.datasets.rich_feedback import Problem, RichFeedback


def read_rows(data: Path, split: str, max_missing: float) -> tuple[list[RichFeedback], list[Problem]]:
    """The good rows of a split, and the bad ones, which are counted on the terminal.

    Raises:
        ValueError: No data set of a known kind, no such split, or no good row.
    """
    problems = list[Problem]()
    rows = list(read_rich_feedback(data, split, problems, max_missing))
    if problems:
        told = f"{len(problems):,} rows are bad and left out; `align data check {data}` names them"
        print(f"{split}: {told}", file=sys.stderr)
    if not rows:
        raise ValueError(f"{data} has no good row in its split {split}. `align data check {data}` names the bad ones.")
    return rows, problems
