"""The two folders of a comparison: generated images, or any with prompts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.samples import SampleRow
from recipes.configs.compare import CompareConfig
from recipes.image_texts import Captions
from recipes.images import Item, find_items, sample_items, store_of
from recipes.pairing import Entry


@dataclass(frozen=True)
class Side:
    """One of the two folders."""

    folder: Path
    items: Sequence[Item]
    rows: Sequence[SampleRow]
    """Of generated images, one for each item; none of others."""

    def entries(self) -> list[Entry]:
        """The images as pairing sees them."""
        if not self.rows:
            return [Entry(os.path.relpath(item.name, self.folder), item.text) for item in self.items]
        pairs = zip(self.items, self.rows, strict=True)
        return [Entry(item.name, item.text, row.sample_index, row.seed) for item, row in pairs]


def open_sides(config: CompareConfig) -> tuple[Side, Side]:
    """Both folders; the same one twice is a mistake."""
    captions = Captions(config.prompt, config.prompts)
    first, second = (open_side(folder, captions) for folder in (config.images_a, config.images_b))
    if len({Path(side.items[0].found.name).resolve() for side in (first, second)}) == 1:
        raise ValueError(
            f"{config.images_a} and {config.images_b} are the same images; a comparison needs two. Give another."
        )
    return first, second


def open_side(folder: Path, captions: Captions) -> Side:
    """The images of a run, which has them in `samples/`, of a folder of samples, or any in a folder with prompts."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give two folders with images.")
    store = store_of([str(folder)])
    if store is None:
        return Side(folder, find_items([str(folder)], captions), ())
    return Side(folder, sample_items(store), store.rows())
