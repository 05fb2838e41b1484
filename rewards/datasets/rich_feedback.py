"""Rich feedback: what people said of an image, in the one form that all readers give (arXiv 2312.10240, section 3)."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rewards.image_file import BAD
from rewards.rahf.network import HEATMAPS, SCORES


@dataclass(frozen=True)
class RichFeedback:
    """What people said of one image. It is light: image and maps are decoded when they are used.

    Attributes:
        image_id: Unique in the data set.
        prompt: As it was given to the model.
        words: The prompt cut into words.
        misaligned: Beside each word, whether the image fails to show it.
        scores: By the names of `rewards.rahf.network.SCORES`, in [0, 1], higher is better.
        heatmaps: By the names of `rewards.rahf.network.HEATMAPS`, what decodes them: in [0, 1], 1 where all saw a
            defect; of one size, which need not be that of the image. Zero everywhere if nobody marked anything.
        image: Reads the picture: RGB in [0, 1].
        ratings: The scores that each person gave, from 1 to 5, where the data set says.
    """

    image_id: str
    prompt: str
    words: tuple[str, ...]
    misaligned: tuple[bool, ...]
    scores: Mapping[str, float]
    heatmaps: Mapping[str, Callable[[], Float[Tensor, "_ _"]]]
    image: Callable[[], Float[Tensor, "3 _ _"]]
    ratings: tuple[Mapping[str, int], ...] = ()


class Problem(NamedTuple):
    """A row that was left out."""

    row: str
    fault: str


def check(row: RichFeedback) -> None:
    """Refuse feedback that contradicts itself. The image is not read.

    Raises:
        ValueError: Says which row, and what is wrong with its words, scores or maps.
    """
    for fault in _faults(row):
        raise ValueError(f"{row.image_id}: {fault}")


def checked(rows: Iterable[tuple[str, Callable[[], RichFeedback]]], problems: list[Problem]) -> Iterator[RichFeedback]:
    """The good rows, one at a time; the others are added to `problems`, and so is an image that comes again.

    Images are not decoded here; where one cannot be later, the ValueError names it.

    Arguments:
        rows: A name for each row, and what makes it or raises a ValueError.
        problems: Grows as the rows are taken.
    """
    seen = set[str]()
    for name, make in rows:
        try:
            row = make()
            check(row)
            if row.image_id in seen:
                raise ValueError(f"{row.image_id}: comes more than once; only the first is taken.")
        except ValueError as error:
            problems.append(Problem(name, str(error)))
        else:
            seen.add(row.image_id)
            yield replace(row, image=partial(_named, row.image_id, row.image))


def decode_map(content: bytes) -> Float[Tensor, "h w"]:
    """A heatmap that is stored as an 8-bit PNG or JPEG.

    Raises:
        ValueError: Bytes that are none.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            return torch.from_numpy(np.asarray(image.convert("L")).copy()).float() / 255
    except BAD as error:
        raise ValueError(f"a heatmap cannot be decoded as PNG or JPEG ({error}).") from error


def _named(image_id: str, decode: Callable[[], Float[Tensor, "3 _ _"]]) -> Float[Tensor, "3 _ _"]:
    try:
        return decode()
    except (ValueError, OSError) as error:
        raise ValueError(f"{image_id}: its image cannot be decoded. {error}") from error


def _faults(row: RichFeedback) -> Iterator[str]:
    if len(row.words) != len(row.misaligned):
        yield f"{len(row.misaligned)} labels came for the {len(row.words)} words {list(row.words)}; each needs one."
    if not row.words:
        yield "its prompt has no words."
    for kind, names, found in (("scores", SCORES, row.scores), ("heatmaps", HEATMAPS, row.heatmaps)):
        if set(found) != set(names):
            yield f"its {kind} are {sorted(found)}; they must be {sorted(names)}."
    for name, score in row.scores.items():
        if not 0 <= score <= 1:
            yield f"its {name} is {score}; scores must be in [0, 1]. Map a scale of 1 to 5 by (s - 1) / 4."
    try:
        maps = {name: decode() for name, decode in row.heatmaps.items()}
    except ValueError as error:
        yield str(error)
        return
    if len({tuple(one.shape) for one in maps.values()}) > 1:
        yield f"its heatmaps have the sizes {[tuple(one.shape) for one in maps.values()]}; they must have one."
    for name, one in maps.items():
        if one.numel() == 0 or not (one.min() >= 0 and one.max() <= 1):
            yield f"its map of {name} is empty or has values outside [0, 1]. Divide 8-bit maps by 255."
