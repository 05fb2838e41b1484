"""The two folders of a comparison: generated images, or any with prompts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.samples import SampleRow
from recipes.configs.compare import CompareConfig
from recipes.image_texts import Captions
from recipes.images import Item, count_transparent, find_items, sample_items, store_of
from recipes.pairing import Entry


@dataclass(frozen=True)
class Side:
    """One of the two folders.

    Attributes:
        folder: As it was given; `align score` keeps its scores in the same place.
        place: Where the images are, in it or below it.
        items: The images.
        rows: Of generated images, one for each item; none of others.
    """

    folder: Path
    place: Path
    items: Sequence[Item]
    rows: Sequence[SampleRow]

    def entries(self) -> list[Entry]:
        """The images as pairing sees them."""
        if not self.rows:
            return [Entry(os.path.relpath(item.name, self.folder), item.text) for item in self.items]
        pairs = zip(self.items, self.rows, strict=True)
        return [Entry(item.name, item.text, row.sample_index, row.seed) for item, row in pairs]


def open_sides(config: CompareConfig) -> tuple[Side, Side]:
    """Both folders; the same one twice is a mistake, and so are prompts where all images have theirs.

    Raises:
        ValueError: One of these; something that is no folder, or a folder without images or without their prompts.
    """
    folders = (config.images_a, config.images_b)
    first, second = (open_side(folder, Captions(config.prompt, config.prompts)) for folder in folders)
    if first.place.resolve() == second.place.resolve():
        raise ValueError(f"{folders[0]} and {folders[1]} are the same images; a comparison needs two. Give another.")
    for outer, inner in ((first, second), (second, first)):
        if not outer.rows and outer.place.resolve() in inner.place.resolve().parents:
            raise ValueError(f"{inner.place} is in {outer.place}, whose images hold its own. Compare folders apart.")
    if first.rows and second.rows and (config.prompt is not None or config.prompts is not None):
        raise ValueError("Both folders hold generated images, which have their prompts. Leave out --prompt, --prompts.")
    return first, second


def open_side(folder: Path, captions: Captions) -> Side:
    """The images of a run, which has them in `samples/`, of a folder of samples, or any in a folder with prompts."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give two folders with images.")
    store = store_of([str(folder)])
    if store is not None:
        return Side(folder, store.folder, sample_items(store), store.rows())
    items = find_items([str(folder)], captions)
    if transparent := count_transparent(items):
        print(f"{transparent:,} of {len(items):,} images of {folder} have transparent parts, flattened on white.")
    return Side(folder, folder, items, ())
