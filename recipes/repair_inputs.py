"""The pictures to be repaired, where each is written, and the user's own masks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from recipes.image_texts import Captions
from recipes.images import Item, find_items
from rewards.image_file import BAD, FORMATS, SUFFIXES

INSIDE = 127
"""Grey levels above it are inside of a mask."""


@dataclass(frozen=True)
class Task:
    """A picture to be repaired.

    Attributes:
        item: The picture and its prompt.
        name: How it is called in the output, as a path.
        mask: The user's own mask of it.
    """

    item: Item
    name: PurePath
    mask: Path | None

    def digest(self, settings: str) -> str:
        """Of all that decides the outcome."""
        mask = self.mask.read_bytes() if self.mask else b""
        parts = [self.item.found.read(), self.item.text.encode(), mask, settings.encode()]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def find_tasks(images: Sequence[Path], captions: Captions, mask: Path | None, out: Path) -> list[Task]:
    """The pictures that names stand for, but for those in `out`, with their prompts and masks.

    Raises:
        ValueError: What `recipes.images.find_items` refuses, `out` is a folder of pictures to be repaired, an empty
            prompt, two pictures of one name, or a picture without a mask where there is a folder of masks.
    """
    folders = [path for path in images if path.is_dir()]
    if out.resolve() in {path.resolve() for path in [*folders, *(path.parent for path in images if path.is_file())]}:
        raise ValueError(f"The output folder {out} is that of the pictures, which are not changed. Give another --out.")
    items = find_items([str(path) for path in images], captions)
    items = [item for item in items if not Path(item.name).resolve().is_relative_to(out.resolve())]
    if empty := [item.name for item in items if not item.text.strip()]:
        raise ValueError(f"{empty[0]} has an empty prompt; it must say what the picture shows.")
    tasks = [Task(item, _name(item.name, folders), _mask(mask, item.name)) for item in items]
    _check_names(tasks)
    return tasks


def read_mask(path: Path, height: int, width: int, resize: bool) -> Bool[Tensor, "h w"]:
    """A mask: inside where it is white, or opaque if it has transparent parts.

    Raises:
        ValueError: No image, one of another size (unless `resize`), or one that marks nothing or everything.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            grey = image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L")
    except BAD as error:
        raise ValueError(f"The mask {path} cannot be read as an image ({error}). Restore it.") from error
    if grey.size != (width, height):
        if not resize:
            raise ValueError(
                f"The mask {path} is {grey.width} x {grey.height} and its picture {width} x {height} (width x height); "
                "they must be of one size. Scale it, or give --resize_mask."
            )
        grey = grey.resize((width, height), Image.Resampling.NEAREST)
    inside: Any = np.asarray(grey) > INSIDE
    if inside.all() or not inside.any():
        marks = "everything, so that nothing would be kept" if inside.all() else "nothing"
        raise ValueError(f"The mask {path} marks {marks}. White is what is repainted: is it inverted?")
    return torch.from_numpy(inside)


def _name(name: str, folders: Sequence[Path]) -> PurePath:
    """Below the folder that was named, or the last part."""
    within = [Path(name).relative_to(folder) for folder in folders if Path(name).is_relative_to(folder)]
    path = PurePath(within[0] if within else Path(name).name)
    return path if path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.png")  # a row of a table


def _mask(masks: Path | None, name: str) -> Path | None:
    """The file, or that of the picture's stem in the folder."""
    if masks is None or masks.is_file():
        return masks
    stem = Path(name).stem
    found = sorted(path for path in masks.glob(f"{stem}.*") if path.stem == stem) if masks.is_dir() else []
    if not found:
        raise ValueError(f"There is no mask of {name}: {masks} must be a file, or a folder with a {stem}.png.")
    return found[0]


def _check_names(tasks: Sequence[Task]) -> None:
    first: dict[PurePath, str] = {}
    for task in tasks:
        other = first.setdefault(task.name.with_suffix(""), task.item.name)
        if other != task.item.name:
            raise ValueError(
                f"{other} and {task.item.name} would both become {task.name.with_suffix('.png')}. Repair them in two "
                "calls, with two --out."
            )
