"""RichHF-18K (arXiv 2312.10240): Google's TFRecords, and the images of Pick-a-Pic that they speak of.

A folder holds `train.tfrecord`, `dev.tfrecord` and `test.tfrecord`, and either the parquet files of Pick-a-Pic v1
anywhere below, or what the first reading makes of them: `images/UUID.jpg` with the prompt in `images/UUID.txt`. After
that the 200 GB of parquet are not needed any more.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from rewards.datasets.pickapic import absent, extract
from rewards.datasets.rich_feedback import Problem, RichFeedback, checked, decode_map
from rewards.datasets.tfrecord import parse_example, read_records
from rewards.image_file import read_image
from rewards.rahf.words import split_words

MAP_SIZE = 512
"""Pixels along a side of every heatmap, whatever the size of the image."""

MAX_MISSING = 0.05
"""The share of images that may be missing unless the user allows more."""

SCORE_COLUMNS = {
    "plausibility": "artifact_score",
    "alignment": "misalignment_score",
    "aesthetics": "aesthetics_score",
    "overall": "overall_score",
}
"""All of them are higher where the image is better, whatever they are called."""

MAP_COLUMNS = {"implausibility": "artifact_map", "misalignment": "misalignment_map"}
LABELS, FILENAME = "prompt_misalignment_label", "filename"


def read_richhf(
    folder: Path, split: str, problems: list[Problem], max_missing: float = MAX_MISSING
) -> Iterator[RichFeedback]:
    """The rows of a split, after `join_images`; bad ones, and those without an image, go to `problems`.

    Raises:
        ValueError: At once, what `join_images` raises; while reading, a record that is damaged.
    """
    join_images(folder, split, max_missing)
    return checked(_rows(folder, split), problems)


def join_images(folder: Path, split: str, max_missing: float = MAX_MISSING) -> list[str]:
    """Copy the images of a split out of the parquet files below `folder`, once; return those that are not there.

    They are listed in `missing-SPLIT.txt`. Of several processes one copies and lists, and the others wait.

    Raises:
        ValueError: No such split, damaged files, or more than `max_missing` (a share) of the images are missing.
    """
    uids = _uids(folder, split)
    images = folder / "images"
    missing, listed = absent(uids, images), folder / f"missing-{split}.txt"
    if missing:
        with FileLock(folder / ".joining.lock"):
            if shards := sorted(folder.rglob("*.parquet")):
                extract(shards, uids, images)
            missing = absent(uids, images)
            listed.write_text("".join(f"{uid}\n" for uid in missing), encoding="utf-8")
    if not missing:
        listed.unlink(missing_ok=True)
    if len(missing) > max_missing * len(uids):
        raise ValueError(
            f"{len(missing)} of {len(uids)} images of {folder / split} are missing, listed in {listed}; at most "
            f"{max_missing:.0%} may be. Put the parquet files of Pick-a-Pic v1 below {folder}, or allow more."
        )
    return missing


def labelled(prompt: str, labels: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The words of a prompt, and beside each whether it is misaligned, which the data set writes as 0.

    Raises:
        ValueError: A label that is neither 0 nor 1.
    """
    found = labels.split()
    if not set(found) <= {"0", "1"}:
        raise ValueError(f"the labels '{labels}' must be zeros and ones with spaces between them.")
    return tuple(split_words(prompt)), tuple(label == "0" for label in found)


def uid_of(filename: str) -> str:
    """`train/UID.png` is the image UID."""
    return Path(filename).stem


def _records(folder: Path, split: str) -> Path:
    path = folder / f"{split}.tfrecord"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.tfrecord")) if folder.is_dir() else []
        raise ValueError(f"{path} does not exist; the splits there are {there}. Name one of them, or fetch the file.")
    return path


def _uids(folder: Path, split: str) -> list[str]:
    """The images of a split; a record that names none is left to the reading, which says so."""
    found = dict[str, None]()
    for record in read_records(_records(folder, split)):
        with suppress(ValueError):
            found[_uid(parse_example(record))] = None
    return list(found)


def _rows(folder: Path, split: str) -> Iterator[tuple[str, Callable[[], RichFeedback]]]:
    for number, record in enumerate(read_records(_records(folder, split))):
        yield f"record {number} of {split}.tfrecord", partial(_row, record, folder / "images")


def _row(record: bytes, images: Path) -> RichFeedback:
    features = parse_example(record)
    uid = _uid(features)
    path, text = images / f"{uid}.jpg", images / f"{uid}.txt"
    if absent([uid], images):
        raise ValueError(f"{uid}: its image is missing.")
    prompt = text.read_text(encoding="utf-8")
    try:
        words, misaligned = labelled(prompt, _one(features, LABELS, bytes).decode())
        maps = {name: _one(features, column, bytes) for name, column in MAP_COLUMNS.items()}
        scores = {name: _one(features, column, float) for name, column in SCORE_COLUMNS.items()}
    except ValueError as error:
        raise ValueError(f"{uid}: {error}") from error
    heatmaps = {name: partial(_decode, content) for name, content in maps.items()}
    return RichFeedback(uid, prompt, words, misaligned, scores, heatmaps, partial(read_image, path))


def _uid(features: Mapping[str, Any]) -> str:
    return uid_of(_one(features, FILENAME, bytes).decode())


def _one(features: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The only value of a feature."""
    values = features.get(name, [])
    if len(values) != 1 or not isinstance(values[0], kind):
        raise ValueError(f"its feature {name} must be one value of {kind.__name__}; {len(values)} came.")
    return values[0]


def _decode(content: bytes) -> Float[Tensor, "512 512"]:
    heatmap = decode_map(content)
    if heatmap.shape != (MAP_SIZE, MAP_SIZE):
        height, width = heatmap.shape
        raise ValueError(f"a heatmap is {height} x {width}; those of RichHF-18K are {MAP_SIZE} x {MAP_SIZE}.")
    return heatmap
