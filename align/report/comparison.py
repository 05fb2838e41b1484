"""The page that compares two folders of images: the numbers, pairs chosen blindly, and the prompts that moved most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.evaluate import Row
from align.report import figures
from align.report.page import Pair
from align.report.templates import html_template
from align.state import atomic_path


@dataclass(frozen=True)
class ComparisonReport:
    """All that the page shows. A is the "base" of rows and pairs, B the "tuned".

    Attributes:
        folders: What A and B are.
        rows: The comparison; the first is the headline.
        prompts: How many prompts the pairs have.
        unit: What the intervals resample, "prompts" or "images".
        pairs: Images of both, in an order that does not depend on their scores.
        gained: The prompts whose headline score is higher in B, the largest gain first, each by one pair.
        lost: Those where it is lower, the largest loss first.
        changes: "reward dimension" -> mean difference of each prompt.
        notes: What a reader must know of the pairing, in sentences.
        unpaired: Names of the images of A and of B that have no partner.
    """

    folders: tuple[str, str]
    rows: Sequence[Row]
    prompts: int
    unit: str
    pairs: Sequence[Pair]
    gained: Sequence[Pair]
    lost: Sequence[Pair]
    changes: Mapping[str, Sequence[float]]
    notes: Sequence[str] = ()
    unpaired: tuple[Sequence[str], Sequence[str]] = ((), ())


NAMED = 200
"""Unpaired images of a folder that are named, at most."""


def write_comparison(path: Path, report: ComparisonReport) -> None:
    """Write the page to `path`, a self-contained HTML file.

    Raises:
        ValueError: There is no row.
    """
    if not report.rows:
        raise ValueError("A comparison came without a row; its page needs one or more. Compare by at least one reward.")
    page = html_template("comparison.html.jinja").render(
        report=report, headline=report.rows[0], figures=figures, named=NAMED
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
