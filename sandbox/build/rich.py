"""Rich feedback in the sandbox: pictures of its Stable Diffusion, and what three simulated people said of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.state import atomic_path
from rewards.datasets.consolidate import disc_map, majority, unit_scores
from sandbox.measure import measure
from sandbox.rich_feedback import RADIUS_PX, RATERS, remarks
from sandbox.world import SIZE_PX

MAX_WORDS = 16
"""Of a caption."""


@dataclass(frozen=True)
class Rich:
    """Pictures, and consolidated feedback on them as RichHF-18K has it.

    Attributes:
        pixels: 8-bit.
        captions: One for each picture.
        scores: In [0, 1], the order that of `sandbox.rich_feedback.SCORES`.
        marks: How many of the people marked each pixel as implausible, and as misaligned.
        misaligned: Beside each word of the caption, False behind its end.
    """

    pixels: UInt8[Tensor, "n 3 64 64"]
    captions: list[str]
    scores: Float[Tensor, "n 4"]
    marks: UInt8[Tensor, "n 2 64 64"]
    misaligned: Bool[Tensor, "n words"]

    @property
    def heatmaps(self) -> Float[Tensor, "n 2 64 64"]:
        """The share of the people who marked each pixel."""
        return self.marks.float() / len(RATERS)


def join(parts: Sequence[Rich]) -> Rich:
    """All pictures of several sets."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("scores", "marks", "misaligned")}
    captions = [text for part in parts for text in part.captions]
    return Rich(torch.cat([part.pixels for part in parts]), captions, **columns)


def annotate(path: Path, pixels: UInt8[Tensor, "n 3 64 64"], captions: list[str], seed: int) -> Rich:
    """Ask the people about every picture, once: their answers are kept in the file."""
    if not path.exists():
        answers = [
            _ask(image, text, (seed, index)) for index, (image, text) in enumerate(zip(pixels, captions, strict=True))
        ]
        scores, marks, misaligned = (torch.stack(column) for column in zip(*answers, strict=True))
        with atomic_path(path) as temporary:
            save_file({"scores": scores, "marks": marks, "misaligned": misaligned}, temporary)
    return Rich(pixels, captions, **load_file(path))


def _ask(image: UInt8[Tensor, "3 64 64"], text: str, seed: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The scores, marks and misaligned words of one picture."""
    said = remarks(measure(image.permute(1, 2, 0).numpy() / 255, text), seed)
    marks = [
        sum(disc_map(getattr(one, kind), RADIUS_PX, SIZE_PX, SIZE_PX).astype(np.uint8) for one in said)
        for kind in ("implausible", "misaligned")
    ]
    words = majority([one.words for one in said])
    return (
        torch.from_numpy(unit_scores(np.array([one.scores for one in said]))).float(),
        torch.from_numpy(np.stack(marks)),
        torch.tensor(words + [False] * (MAX_WORDS - len(words))),
    )
