"""The report of one model drawn in several ways: pictures side by side, every comparison, and the guidance scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align.evaluate import Estimate, Row
from align.report import figures
from align.report.page import Histogram
from align.report.templates import html_template
from align.state import atomic_path

ScalePoint = tuple[float, float, float, float]
"""Guidance scale, mean score, and the ends of its interval."""


@dataclass(frozen=True)
class Way:
    """A way of drawing, with one image of each of `ArmsReport.prompts`."""

    title: str
    images: Sequence[Float[Tensor, "3 h w"]]


@dataclass(frozen=True)
class Versus:
    """One way of drawing against another: a row for each dimension of each reward."""

    way: str
    against: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Effects:
    """How far each treatment moves each measure.

    Attributes:
        title: Who measures, and what is done.
        measures: One for each row.
        treatments: One for each column, the k-th meant for the k-th measure.
        means: By measure and treatment, in standard deviations of the measure.
        margins: Of each row, the own treatment minus the best of the others, see `align.evaluate.diagonal_margins`.
    """

    title: str
    measures: Sequence[str]
    treatments: Sequence[str]
    means: Sequence[Sequence[float]]
    margins: Sequence[Estimate]


@dataclass(frozen=True)
class ArmsReport:
    """All that the page shows.

    Attributes:
        title: What was done to which model.
        comparisons: The first row of the first one is the headline.
        ways: In the order of the columns of pictures.
        prompts: Those of the pictures; the choice does not look at scores.
        base_by_scale: The base model's mean score by guidance scale; empty where that was not tried.
        tuned_by_scale: The tuned model's.
        notes: What a reader must know, in sentences.
        histograms: Of the scores that were chosen from.
        losses: (step, loss) of each training, by its name.
        settings: Name -> value, as resolved.
        effects: Tables of several tokens and what they were meant for.
    """

    title: str
    comparisons: Sequence[Versus]
    ways: Sequence[Way]
    prompts: Sequence[str]
    base_by_scale: Sequence[ScalePoint]
    tuned_by_scale: Sequence[ScalePoint]
    notes: Sequence[str]
    histograms: Sequence[Histogram]
    losses: Mapping[str, Sequence[tuple[int, float]]]
    settings: Mapping[str, object]
    effects: Sequence[Effects] = ()


def write_arms(folder: Path, report: ArmsReport) -> Path:
    """Write `folder/report.html` and return its path.

    Raises:
        ValueError: A way of drawing does not have one image of each prompt.
    """
    for way in report.ways:
        if len(way.images) != len(report.prompts):
            raise ValueError(f"{way.title} came with {len(way.images)} images for {len(report.prompts)} prompts.")
    by_prompt = list(zip(*(way.images for way in report.ways), strict=True))
    page = html_template("arms.html.jinja").render(
        report=report,
        headline=report.comparisons[0].rows[0],
        picture_rows=list(zip(report.prompts, by_prompt, strict=True)),
        figures=figures,
    )
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
