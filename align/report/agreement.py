"""The page on how far rewards agree with people: the numbers, clouds of scores, and the best and worst examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align.report import figures
from align.report.templates import html_template
from align.state import atomic_path

Draw = Callable[[], Float[Tensor, "3 h w"]]


@dataclass(frozen=True)
class Table:
    """A titled table of texts: `rows` are a name and a cell for each column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str = ""


@dataclass(frozen=True)
class ExamplePicture:
    """An image, what people marked, and what the reward says.

    Attributes:
        name: Of the image.
        views: Title -> draws a picture; the image itself comes first.
        scores: (name, the reward's, people's).
        words: The prompt's words: whether people call it misaligned, and whether the reward does.
    """

    name: str
    views: Mapping[str, Draw]
    scores: Sequence[tuple[str, float, float]]
    words: Sequence[tuple[str, bool, bool]]


@dataclass(frozen=True)
class AgreementReport:
    """All that the page shows.

    Attributes:
        reward: The first reward, which the page is about.
        headline: Its number, and what that is.
        data: Where people's answers come from.
        images: How many.
        prompts: How many.
        tables: In their order.
        clouds: Title -> (people's, the reward's) for each image.
        examples: Title -> images, in the order in which they are shown.
        notes: What a reader must know, in sentences.
    """

    reward: str
    headline: tuple[float, str]
    data: str
    images: int
    prompts: int
    tables: Sequence[Table]
    clouds: Mapping[str, Sequence[tuple[float, float]]]
    examples: Mapping[str, Sequence[ExamplePicture]]
    notes: Sequence[str] = ()


def write_agreement(path: Path, report: AgreementReport) -> None:
    """Write the page to `path`, a self-contained HTML file."""
    page = html_template("agreement.html.jinja").render(report=report, figures=figures)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
