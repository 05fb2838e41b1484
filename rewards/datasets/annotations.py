"""Annotations of one's own: what each person said of each image, before it is made one (arXiv 2312.10240, section 3).

A folder holds `train.jsonl`, `dev.jsonl` and `test.jsonl`, or some of them, and the images that they name. A line is

    {"file_name": "images/1.png", "text": "a red circle", "remarks": [
      {"scores": {"plausibility": 4, "alignment": 5, "aesthetics": 3, "overall": 4},
       "implausible": [[12.5, 40]], "misaligned": [], "misaligned_words": [1]}]}

with a remark of each person: scores from 1 to 5, points as [x, y] in pixels of the image, and the misaligned words by
their place among those that `rewards.rahf.words.split_words` makes of the text. Points become discs, maps are the share
of the people who marked a pixel, scores (s - 1) / 4 in the mean, and a word is misaligned if most people say so.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from rewards.datasets.consolidate import majority, mean_map, unit_scores
from rewards.datasets.rich_feedback import Problem, RichFeedback, checked
from rewards.image_file import BAD, FORMATS, read_image
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.rahf.words import split_words

RADIUS = 1 / 20
"""Of the disc around a point, as a share of the image's height; recalled from the paper, not confirmed."""

POINTS: Mapping[str, str] = dict(zip(HEATMAPS, ("implausible", "misaligned"), strict=True))
"""Where a remark has the points of each map."""

KEYS = ("scores", *POINTS.values(), "misaligned_words")
"""All that a remark may have."""


def read_annotations(folder: Path, split: str, problems: list[Problem]) -> Iterator[RichFeedback]:
    """The rows of a split, people's remarks made one; bad rows go to `problems`.

    Raises:
        ValueError: At once, no file of that split.
    """
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.jsonl")) if folder.is_dir() else []
        raise ValueError(f"{path} does not exist; the splits there are {there}. Name one of them.")
    return checked(_rows(path), problems)


def _rows(path: Path) -> Iterator[tuple[str, Callable[[], RichFeedback]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number} of {path.name}", partial(_row, line, path.parent)


def _row(line: str, folder: Path) -> RichFeedback:
    row = _object(line)
    name, text, remarks = row["file_name"], row["text"], row["remarks"]
    try:
        image = _inside(folder, name)
        width, height = _size(image)
        _check_keys(remarks)
        words = tuple(split_words(text))
        ratings = tuple({score: _rating(remark, score) for score in SCORES} for remark in remarks)
        clicked = [_clicked(remark, len(words)) for remark in remarks]
        points = {kind: [_points(remark, key) for remark in remarks] for kind, key in POINTS.items()}
        scores = unit_scores(np.array([list(rating.values()) for rating in ratings]))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error
    return RichFeedback(
        name,
        text,
        words,
        tuple(majority(clicked)),
        dict(zip(SCORES, scores.tolist(), strict=True)),
        {kind: partial(_map, of_people, height, width) for kind, of_people in points.items()},
        partial(read_image, image),
        ratings,
    )


def _object(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error}).") from error
    kinds = {"file_name": str, "text": str, "remarks": list}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
        raise ValueError("it must be an object with file_name and text (strings) and remarks (a list).")
    if not row["remarks"] or not all(isinstance(remark, dict) for remark in row["remarks"]):
        raise ValueError(f"{row['file_name']}: its remarks must be one or more objects, one of each person.")
    return row


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"its file must be below {folder}.")
    if not path.is_file():
        raise ValueError("its image is missing.")
    return path


def _size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, whose pixels are not read for it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(ImageOps.ExifTags.Base.Orientation, 1) > 4
            return (image.height, image.width) if turned else (image.width, image.height)
    except BAD as error:
        raise ValueError(f"its image cannot be read ({error}).") from error


def _check_keys(remarks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse keys that nobody reads: a misspelt one would leave its labels empty."""
    for key in (key for remark in remarks for key in remark if key not in KEYS):
        near = get_close_matches(key, KEYS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Leave it out."
        raise ValueError(f"a remark has the key '{key}'; it may have {', '.join(KEYS)}. {hint}")


def _rating(remark: Mapping[str, Any], name: str) -> int:
    scores = remark.get("scores")
    value = scores.get(name) if isinstance(scores, dict) else None
    if type(value) is not int or not 1 <= value <= 5:
        raise ValueError(f"its score of {name} is {value}; it must be a whole number from 1 to 5.")
    return value


def _clicked(remark: Mapping[str, Any], count: int) -> list[bool]:
    places = remark.get("misaligned_words", [])
    if not isinstance(places, list) or not all(type(place) is int and 0 <= place < count for place in places):
        raise ValueError(f"its misaligned_words are {places}; they must be places among its {count} words, from 0 on.")
    return [place in places for place in range(count)]


def _points(remark: Mapping[str, Any], key: str) -> Float[np.ndarray, "point 2"]:
    try:
        points = np.array(remark.get(key, []), dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {key} must be a list of points [x, y].") from error
    if not np.isfinite(points).all():
        raise ValueError(f"its {key} has a point that is not finite.")
    return points


def _map(points: Sequence[Float[np.ndarray, "_ 2"]], height: int, width: int) -> Float[Tensor, "h w"]:
    return torch.from_numpy(mean_map(points, RADIUS * height, height, width)).float()
