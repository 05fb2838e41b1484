"""What critics say of images, on disk: a folder for each image, with heatmaps, these over the picture, and words."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.report.overlay import overlay
from align.state import atomic_path
from recipes.images import Item
from rewards.base import Critique
from rewards.image_file import read_image

RECORD = "critique.json"
"""Written last: an image that has it is complete."""


@dataclass(frozen=True)
class Critiques:
    """A critic's maps and words of images, by the images' names.

    Attributes:
        folder: Holds a folder for each image and prompt, `NAME-DIGITS/`, with `MAP.png` (8-bit), `MAP-overlay.png` and
            `critique.json`.
        maps: The names of the maps.
    """

    folder: Path
    maps: tuple[str, ...]

    def has(self, item: Item) -> bool:
        """Whether all is there of an image."""
        return (self._place(item) / RECORD).is_file()

    def write(self, items: Sequence[Item], images: Sequence[Float[Tensor, "3 _ _"]], critique: Critique) -> None:
        """Write what was said of a batch."""
        for index, (item, image) in enumerate(zip(items, images, strict=True)):
            place = self._place(item)
            place.mkdir(parents=True, exist_ok=True)
            for kind in self.maps:
                heat = critique.heatmaps[kind][index].detach().float().cpu()
                _save(heat[None], place / f"{kind}.png")
                _save(overlay(image.cpu(), heat), place / f"{kind}-overlay.png")
            words = list(zip(critique.words[index], critique.misaligned[index], strict=True))
            with atomic_path(place / RECORD) as temporary:
                temporary.write_text(
                    json.dumps({"image": item.name, "text": item.text, "words": words}) + "\n", encoding="utf-8"
                )

    def words(self, item: Item) -> list[tuple[str, bool]]:
        """The words of an image's prompt, each with whether the image misses it."""
        content = json.loads((self._place(item) / RECORD).read_text(encoding="utf-8"))
        return [(word, missed) for word, missed in content["words"]]

    def overlay(self, item: Item, kind: str) -> Float[Tensor, "3 h w"]:
        """The image under one of its maps."""
        return read_image(self._place(item) / f"{kind}-overlay.png")

    def _place(self, item: Item) -> Path:
        """A folder below ours, whatever the name, that belongs to this content and prompt alone."""
        path = PurePath(item.name)
        parts = ["up" if part == ".." else part for part in path.parts if part != path.anchor]
        digits = hashlib.sha256("\n".join(item.key).encode()).hexdigest()[:8]
        return self.folder.joinpath(*parts[:-1], f"{parts[-1]}-{digits}")


def _save(pixels: Float[Tensor, "channel h w"], path: Path) -> None:
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    with atomic_path(path) as temporary:
        Image.fromarray(np.squeeze(levels, axis=2) if levels.shape[2] == 1 else levels).save(temporary, format="PNG")
