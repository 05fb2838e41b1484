"""The pictures to be repaired, where each is written, and the user's own masks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from recipes.image_texts import Captions
from recipes.images import Item, find_items
from rewards.image_file import SUFFIXES, alpha_of, read_image

INSIDE, MAX_PARTS = 0.5, 32
"""Levels above this are inside of a mask; and how many separate parts it may have."""


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
    items = list({Path(one.name).resolve(): one for one in find_items([*map(str, images)], captions, out)}.values())
    if empty := [item.name for item in items if not item.text.strip()]:
        raise ValueError(f"{empty[0]} has an empty prompt; it must say what the picture shows.")
    names = [_name(item.name, folders) for item in items]
    tasks = [Task(item, name, _mask(mask, name)) for item, name in zip(items, names, strict=True)]
    _check_names(tasks)
    return tasks


def read_mask(path: Path, height: int, width: int, resize: bool) -> Bool[Tensor, "h w"]:
    """A mask: inside where it is white or, if parts of it are transparent, where it is opaque.

    Raises:
        ValueError: No image, one of another size (unless `resize`), or one that marks nothing or everything.
    """
    try:
        content = path.read_bytes()
        alpha = alpha_of(content)
        level = read_image(content).mean(dim=0) if alpha is None else alpha
    except (ValueError, OSError) as error:
        raise ValueError(f"The mask {path} cannot be read as an image ({error}). Restore it.") from error
    if level.shape != (height, width):
        if not resize:
            raise ValueError(
                f"The mask {path} is {level.shape[1]} x {level.shape[0]} and its picture {width} x {height} (width x "
                "height); they must be of one size. Scale it, or give --resize_mask."
            )
        level = interpolate(level[None, None], (height, width), mode="nearest-exact")[0, 0]
    return _checked(level > INSIDE, path)


def _checked(inside: Bool[Tensor, "h w"], path: Path) -> Bool[Tensor, "h w"]:
    if inside.all() or not inside.any():
        marks = "everything, so that nothing would be kept" if inside.all() else "nothing"
        raise ValueError(f"The mask {path} marks {marks}. White is what is repainted: is it inverted?")
    labelled: Any = ndimage.label(inside.numpy(), structure=np.ones((3, 3)))
    parts = labelled[1]
    if parts > MAX_PARTS:
        raise ValueError(
            f"The mask {path} has {parts:,} separate parts, each of which is repainted alone; {MAX_PARTS} is the most. "
            "Grow it until they meet, or keep fewer."
        )
    return inside


def _name(name: str, folders: Sequence[Path]) -> PurePath:
    """Below the folder that was named, or the last part."""
    within = [Path(name).relative_to(folder) for folder in folders if Path(name).is_relative_to(folder)]
    path = PurePath(within[0] if within else Path(name).name)
    return path if path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.png")  # a row of a table


def _mask(masks: Path | None, name: PurePath) -> Path | None:
    """The file, or that of the picture's name, with any suffix of an image, in the folder."""
    if masks is None or masks.is_file():
        return masks
    found = [path for suffix in SUFFIXES if (path := (masks / name).with_suffix(suffix)).is_file()]
    if not found:
        wanted = name.with_suffix(".png")
        raise ValueError(f"There is no mask of {name}: {masks} must be a file, or a folder with {wanted}.")
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
