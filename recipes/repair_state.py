"""A picture under repair: what it was, what it is, what was tried, and which candidate may be taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from align.masks import Region

Scores = dict[str, float]


@dataclass(frozen=True)
class Candidate:
    """A repainting of a region, and what the critic gave it."""

    seed: int
    strength: float
    scores: Scores


@dataclass(frozen=True)
class Attempt:
    """One region's repaintings; `chosen` counts in the candidates, and is None where the picture stayed as it was."""

    round: int
    region: Region
    candidates: Sequence[Candidate]
    chosen: int | None


@dataclass(eq=False)
class Repair:
    """A picture under repair.

    Attributes:
        pixels: RGB; as it is now.
        prompt: What it shows.
        mask: The user's own, if there is one: where heat counts, or all that is repainted.
        seen: What the critic sees of pixels; a picture with transparent parts is flattened for it.
        before: Scores of the original by dimension.
        after: Scores now.
        heat: What the critic saw in the original; None with a mask that says all.
        regions: To be repainted next.
        attempts: What was tried.
        missed: Words of the prompt that the critic calls misaligned.
        ended: There is nothing more to do.
    """

    pixels: UInt8[Tensor, "3 h w"]
    prompt: str
    mask: Bool[Tensor, "h w"] | None = None
    seen: Callable[[UInt8[Tensor, "3 h w"]], Float[Tensor, "3 h w"]] = lambda pixels: pixels.float() / 255
    before: Scores = field(default_factory=dict[str, float])
    after: Scores = field(default_factory=dict[str, float])
    heat: Float[Tensor, "h w"] | None = None
    regions: Sequence[Region] = ()
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    missed: Sequence[str] = ()
    ended: bool = False

    @property
    def tried(self) -> list[Region]:
        """All regions that were repainted, whether or not a candidate was taken."""
        return [attempt.region for attempt in self.attempts]

    @property
    def is_changed(self) -> bool:
        """Whether a candidate was taken."""
        return any(attempt.chosen is not None for attempt in self.attempts)


def choose(
    scores: Float[Tensor, "candidate dimension"], above: float, original: Sequence[float], tolerance: float, column: int
) -> int | None:
    """The candidate with the highest score in `column`, if that is above `above`; None where no candidate may be taken.

    One may not be taken whose score in another column is more than `tolerance` below the original's.
    """
    lowest = torch.tensor(original, dtype=scores.dtype) - tolerance
    lowest[column] = above
    allowed = (scores >= lowest).all(dim=1) & (scores[:, column] > above)
    return int(scores[:, column].where(allowed, -torch.inf).argmax()) if allowed.any() else None
