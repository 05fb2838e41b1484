"""The report of a run: plain numbers and images in, one self-contained `report.html` out.

It opens from disk and by mail: styles, figures and images are inside the file, and it has no script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from align.evaluate import RecoveredGap, Row
from align.report import figures
from align.report.templates import html_template
from align.select import Selection
from align.state import atomic_path

DIVERSITY = "diversity"
"""`Row.reward` of a mean distance between the images of a prompt; `Row.dimension` names the embedder."""


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, before and after, with the scores of the headline row; the seed is None where unknown."""

    prompt: str
    seed: int | None
    base: Float[Tensor, "3 h w"]
    tuned: Float[Tensor, "3 h w"]
    base_score: float
    tuned_score: float


@dataclass(frozen=True)
class Curve:
    """Expected score of the base model's best of k = 1..n samples, and the mean of the tuned model.

    `lows` and `highs` are the ends of the 95 % interval of each of the means; both empty where there is none.
    """

    name: str
    means: Sequence[float]
    tuned_mean: float | None = None
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()

    @property
    def worth(self) -> float | None:
        """How many base samples one tuned sample is worth: the k at which the curve reaches the tuned mean."""
        if self.tuned_mean is None or not self.means[0] <= self.tuned_mean <= self.means[-1]:
            return None
        for k, (low, high) in enumerate(zip(self.means, self.means[1:], strict=False), start=1):
            if low <= self.tuned_mean <= high and high > low:
                return k + (self.tuned_mean - low) / (high - low)
        return None


@dataclass(frozen=True)
class Histogram:
    """Scores of all candidates and of those that were selected."""

    name: str
    candidates: Sequence[float]
    selected: Sequence[float]
    threshold: float | None = None


@dataclass(frozen=True)
class Grid:
    """One image of each of `Report.grid_prompts` after so many steps of training; step 0 is the base model."""

    step: int
    images: Sequence[Float[Tensor, "3 h w"]]


@dataclass(frozen=True)
class Series:
    """Mean score of the fixed prompts, as (step, score) by rising step; one point or more."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Report:
    """All that the page shows; what a recipe does not have stays empty, and its section is left out.

    Attributes:
        title: What was done to which model.
        rows: The evaluation; the first row whose reward is not `DIVERSITY` is the headline.
        pairs: Images before and after, in an order that does not depend on their scores.
        settings: Name -> value, as resolved.
        selected_by: Names of the rewards that chose the training images, as in `Row.reward`.
        recovered: Share of the best-of-n gap that was recovered, in the headline's score.
        curves: Expected best of k, one for each reward.
        selection: What was kept; `candidates` is how many images it was kept from.
        truncated_prompts: How many prompts the tokenizer cut.
        losses: (step, loss) of the training.
        grids: The fixed prompts, with the same seeds each time, by rising step.
        grid_prompts: The fixed prompts, in the order of the images of a grid.
        validation: The mean scores of the fixed prompts while training, one series for each dimension of a reward.
        improved: The prompts whose score rose most, the largest rise first.
        damaged: The prompts whose score fell most, the largest fall first; shown where either has one.
        rounds: (round, the headline's row after it), from round 1 on.
    """

    title: str
    rows: Sequence[Row]
    pairs: Sequence[Pair]
    settings: Mapping[str, object]
    selected_by: Sequence[str] = ()
    recovered: RecoveredGap | None = None
    curves: Sequence[Curve] = ()
    selection: Selection | None = None
    candidates: int = 0
    histograms: Sequence[Histogram] = ()
    truncated_prompts: int = 0
    losses: Sequence[tuple[int, float]] = ()
    grids: Sequence[Grid] = ()
    grid_prompts: Sequence[str] = ()
    validation: Sequence[Series] = ()
    improved: Sequence[Pair] = ()
    damaged: Sequence[Pair] = ()
    rounds: Sequence[tuple[int, Row]] = ()


def write_report(folder: Path, report: Report) -> Path:
    """Write `folder/report.html` and return its path.

    Raises:
        ValueError: There is no row for the headline, or a grid does not have one image of each of its prompts.
    """
    first = headline(report)
    page = html_template("page.html.jinja").render(
        report=report,
        headline=first,
        diversity=DIVERSITY,
        grid_rows=grid_rows(report),
        figures=figures,
        rounds_chart=rounds_chart,
    )
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def headline(report: Report) -> Row:
    """The row that the page opens with."""
    for row in report.rows:
        if row.reward != DIVERSITY:
            return row
    raise ValueError("The report came without a result row of a reward; it needs one for its headline. Evaluate first.")


def grid_rows(report: Report) -> list[tuple[str, tuple[Float[Tensor, "3 h w"], ...]]]:
    """Each of the fixed prompts with its images, by step."""
    for grid in report.grids:
        if len(grid.images) != len(report.grid_prompts):
            raise ValueError(
                f"The grid of step {grid.step} came with {len(grid.images)} images and there are "
                f"{len(report.grid_prompts)} prompts; there must be one image of each. Draw the missing ones."
            )
    by_prompt = zip(*(grid.images for grid in report.grids), strict=True)
    return list(zip(report.grid_prompts, by_prompt, strict=False))  # without grids there are prompts and no rows


def rounds_chart(rounds: Sequence[tuple[int, Row]]) -> Markup:
    """The means of the rounds, each with the interval of its difference to the base model."""
    return figures.rounds_chart(
        rounds[0][1].base_mean,
        [(number, row.tuned_mean) for number, row in rounds],
        [(number, row.base_mean + row.ci_low) for number, row in rounds],
        [(number, row.base_mean + row.ci_high) for number, row in rounds],
    )
