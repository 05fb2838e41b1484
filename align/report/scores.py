"""The page of scored images: how the scores lie, and the images themselves from the best to the worst.

Images are read one at a time while the page is written, and of many only some are drawn, so that a folder of any size
gives a page that opens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from scipy import stats
from torch import Tensor

from align.report import figures
from align.report.templates import html_template
from align.state import atomic_path

ENDS, MIDDLE = 24, 12
"""Images drawn from either end and from the middle, where there are more than all of these."""

LISTED = 2_000
"""Lines of the table of the images that are not drawn, at most."""

SIDE = 384
"""Longest side of a drawn image."""


@dataclass(frozen=True)
class ScoredPicture:
    """One image and what was said of it.

    Attributes:
        name: The file, as a reader would look for it.
        prompt: Its text.
        image: Reads it, RGB in [0, 1]; called when the page draws it, and not at all where it is only listed.
        scores: "reward dimension" -> score; None where it was not finite.
        overlays: Heatmap's name -> draws the image under it.
        words: The prompt's words, each with whether the image misses it; empty where nothing was said of words.
    """

    name: str
    prompt: str
    image: Callable[[], Float[Tensor, "3 h w"]]
    scores: Mapping[str, float | None]
    overlays: Mapping[str, Callable[[], Float[Tensor, "3 h w"]]] = field(default_factory=dict)
    words: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True)
class ScoreReport:
    """All that the page shows.

    Attributes:
        title: What was scored.
        columns: "reward dimension" in their order; the first sorts the page.
        pictures: In any order; each with a score, or None, for every column.
        skipped: (file, reason) of what could not be scored.
    """

    title: str
    columns: Sequence[str]
    pictures: Sequence[ScoredPicture]
    skipped: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Column:
    """How the finite scores of a column lie; without any, the numbers are None."""

    name: str
    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    chart: Markup


Ranked = Sequence[tuple[int, ScoredPicture]]
"""Images with their ranks, 1 for the best."""


def write_score_report(path: Path, report: ScoreReport) -> None:
    """Write the page to `path`, a self-contained HTML file.

    Raises:
        ValueError: There is no column or no picture.
    """
    if not report.columns or not report.pictures:
        raise ValueError(
            f"{len(report.columns)} scores and {len(report.pictures)} images came for a page of scored images; it "
            "needs at least one of each. Score some images first."
        )
    ranked, unranked = rank(report)
    drawn, listed = choose(ranked)
    page = html_template("scores.html.jinja").generate(
        report=report,
        columns=[column(name, report.pictures) for name in report.columns],
        agreement=rank_agreement(report),
        ranked=len(ranked),
        drawn=drawn,
        listed=listed,
        unranked=[("\N{EN DASH}", picture) for picture in unranked],
        has_words=any(picture.words for picture in report.pictures),
        has_overlays=any(picture.overlays for picture in report.pictures),
        most=LISTED,
        side=SIDE,
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page)


def rank(report: ScoreReport) -> tuple[Ranked, Sequence[ScoredPicture]]:
    """The images by the first column, the best first, and those without a score in it."""
    first = report.columns[0]
    scores = [picture.scores[first] for picture in report.pictures]
    finite = [(score, index) for index, score in enumerate(scores) if score is not None]
    order = [index for _, index in sorted(finite, key=lambda pair: (-pair[0], pair[1]))]
    unranked = [picture for picture, score in zip(report.pictures, scores, strict=True) if score is None]
    return [(place, report.pictures[index]) for place, index in enumerate(order, start=1)], unranked


def choose(ranked: Ranked) -> tuple[dict[str, Ranked], Ranked]:
    """Which images are drawn, by the heading they are drawn under, and which are left to be listed."""
    if len(ranked) <= 2 * ENDS + MIDDLE:
        return ({"All images, the best first": ranked} if ranked else {}), []
    start = (len(ranked) - MIDDLE) // 2
    end = start + MIDDLE
    drawn = {"The best": ranked[:ENDS], "The middle": ranked[start:end], "The worst": ranked[-ENDS:]}
    return drawn, [*ranked[ENDS:start], *ranked[end:-ENDS]]


def column(name: str, pictures: Sequence[ScoredPicture]) -> Column:
    """Mean, standard deviation (of these images, not an estimate) and range of a column."""
    scores = [score for picture in pictures if (score := picture.scores[name]) is not None]
    if not scores:
        return Column(name, 0, None, None, None, None, Markup())
    mean, sd = float(np.mean(scores)), float(np.std(scores))
    return Column(name, len(scores), mean, sd, min(scores), max(scores), figures.distribution(scores))


def rank_agreement(report: ScoreReport) -> list[list[float | None]]:
    """Spearman's rank correlation of each two columns, over the images that have both scores.

    None where it has no meaning: fewer than two such images, or scores that are all equal.
    """
    values = np.array([[picture.scores[name] for name in report.columns] for picture in report.pictures], dtype=float)
    return [[_spearman(one, other) for other in values.T] for one in values.T]


def _spearman(one: Float[np.ndarray, " image"], other: Float[np.ndarray, " image"]) -> float | None:
    both = np.isfinite(one) & np.isfinite(other)
    x, y = one[both], other[both]
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
