"""The page of a folder of repairs: what was gained, and each picture before, its heat, its mask, and after."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align.report import figures
from align.report.templates import html_template
from align.state import atomic_path

DRAWN = 60
"""Pictures of each outcome that are drawn; the others are listed."""
LISTED = 2000
"""Pictures that a list has at most, and so has that of the files left out."""
STRIP_SIDE = 1280
"""Longer side of a strip in the page, in pixels."""
PANELS = ("before", "heat", "mask", "after")
"""What a strip shows, from left to right, all of one width."""
REPAIRED = "repaired"
"""The outcome whose gains are drawn."""


@dataclass(frozen=True)
class RepairedPicture:
    """What became of a picture.

    Attributes:
        name: Of the picture.
        text: Its prompt.
        strip: Draws `PANELS` side by side.
        before: Its scores by dimension.
        after: The same ones of what was written.
        verdict: In one line what was done, e.g. "repaired: plausibility 0.41 -> 0.83", "no flaw found", or "kept: no
            candidate was better"; what stands before a colon is the outcome by which pictures are counted.
        regions: How many were masked.
        candidates: How many were painted.
        seconds: That it took.
    """

    name: str
    text: str
    strip: Callable[[], Float[Tensor, "3 h w"]]
    before: Mapping[str, float]
    after: Mapping[str, float]
    verdict: str
    regions: int
    candidates: int
    seconds: float

    @property
    def outcome(self) -> str:
        """The first words of the verdict."""
        return self.verdict.partition(":")[0]

    def gain(self, dimension: str) -> float:
        """By how much a score rose."""
        return self.after[dimension] - self.before[dimension]


@dataclass(frozen=True)
class RepairReport:
    """All that the page shows.

    Attributes:
        title: What was repaired, by what.
        objective: The dimension that repair raises.
        pictures: In any order.
        problems: (file, why it was left out).
        settings: As resolved, in YAML.
    """

    title: str
    objective: str
    pictures: Sequence[RepairedPicture]
    problems: Sequence[tuple[str, str]]
    settings: str


Ranked = list[tuple[int, RepairedPicture]]
"""Pictures with their places by gain, from 1."""


def write_repair_report(path: Path, report: RepairReport) -> None:
    """Write the page to `path`, a self-contained HTML file; the pictures with the largest gain come first."""
    ranked = rank(report)
    gains = [picture.gain(report.objective) for _, picture in ranked]
    page = html_template("repair.html.jinja").render(
        report=report,
        outcomes=Counter(picture.outcome for picture in report.pictures),
        groups=group(ranked),
        gains=gains,
        repaired=[gain for gain, (_, picture) in zip(gains, ranked, strict=True) if picture.outcome == REPAIRED],
        dimensions=dimensions(report),
        figures=figures,
        drawn=DRAWN,
        most=LISTED,
        panels=PANELS,
        side=STRIP_SIDE,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def rank(report: RepairReport) -> Ranked:
    """The pictures by their gain in the objective, the largest first; equal ones in the order in which they came."""
    ordered = sorted(report.pictures, key=lambda picture: -picture.gain(report.objective))
    return list(enumerate(ordered, start=1))


def group(ranked: Ranked) -> dict[str, Ranked]:
    """The ranked pictures by outcome, that of the best one first."""
    groups: dict[str, Ranked] = {}
    for place, picture in ranked:
        groups.setdefault(picture.outcome, []).append((place, picture))
    return groups


def dimensions(report: RepairReport) -> list[str]:
    """All that is scored, the objective first."""
    names = dict.fromkeys(name for picture in report.pictures for name in picture.before)
    return [report.objective, *(name for name in names if name != report.objective)]
