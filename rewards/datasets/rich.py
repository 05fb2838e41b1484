"""Rich feedback of whatever kind a folder holds: RichHF-18K, a mirror of it in parquet, or annotations of one's own."""

from collections.abc import Iterator
from pathlib import Path

from rewards.datasets.annotations import read_annotations
from rewards.datasets.rich_feedback import Problem, RichFeedback
from rewards.datasets.richhf import MAX_MISSING, read_richhf
from rewards.datasets.richhf_parquet import read_richhf_parquet

SPLITS = ("train", "dev", "validation", "test")
"""In the order in which they are told; a folder may name others."""


def list_splits(folder: Path) -> list[str]:
    """The splits of a data set.

    Raises:
        ValueError: No folder, or none of a known kind.
    """
    _, splits = _kind(folder)
    return sorted(splits, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))


def read_rich_feedback(
    folder: Path, split: str, problems: list[Problem], max_missing: float = MAX_MISSING
) -> Iterator[RichFeedback]:
    """The rows of a split, one at a time; bad ones go to `problems`, and an image that comes twice is taken once.

    Arguments:
        folder: Has SPLIT.tfrecord (see `rewards.datasets.richhf`), SPLIT.jsonl (`rewards.datasets.annotations`) or
            SPLIT-*.parquet (`rewards.datasets.richhf_parquet`).
        split: "train", "dev", "test", or what the files are called.
        problems: Grows as the rows are taken.
        max_missing: The share of images that may be missing from the join with Pick-a-Pic.

    Raises:
        ValueError: No such folder, kind or split; too many images that are missing; a damaged file.
    """
    kind, _ = _kind(folder)
    if kind == "tfrecord":
        return read_richhf(folder, split, problems, max_missing)
    if kind == "jsonl":
        return read_annotations(folder, split, problems)
    return read_richhf_parquet(folder, split, problems)


def _kind(folder: Path) -> tuple[str, set[str]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the one that holds the data set.")
    # a folder of TFRecords may hold the parquet files of Pick-a-Pic, too
    for kind in ("tfrecord", "jsonl"):
        if found := {path.stem for path in folder.glob(f"*.{kind}")}:
            return kind, found
    if found := {path.name.split("-")[0] for path in folder.rglob("*-*.parquet")}:
        return "parquet", found
    raise ValueError(
        f"{folder} holds no rich feedback: SPLIT.tfrecord of RichHF-18K, SPLIT-*.parquet of a mirror, or SPLIT.jsonl "
        "of annotations of your own. See docs/train-a-reward.md."
    )
