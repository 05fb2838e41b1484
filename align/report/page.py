"""The report of a run: plain numbers and images in, one self-contained `report.html` out.

It opens from disk and by mail: styles, figures and images are inside the file, and it has no script.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from align.evaluate import RecoveredGap, Row
from align.report import figures
from align.select import Selection
from align.state import atomic_path

PIXEL_ART_SIDE = 128  # images up to this side are kept as they are and drawn with hard pixels
PHOTO_SIDE = 512  # larger ones are shrunk to this


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, before and after, with the scores of the headline row."""

    prompt: str
    seed: int
    base: Float[Tensor, "3 h w"]
    tuned: Float[Tensor, "3 h w"]
    base_score: float
    tuned_score: float


@dataclass(frozen=True)
class Curve:
    """Expected score of the base model's best of k = 1..n samples, and the mean of the tuned model."""

    name: str
    means: Sequence[float]
    tuned_mean: float | None = None

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
class Report:
    """All that the page shows; what a recipe does not have stays empty, and its section is left out.

    Attributes:
        title: What was done to which model.
        rows: The evaluation; the first row is the headline.
        pairs: Images before and after, in an order that does not depend on their scores.
        settings: Name -> value, as resolved.
        selected_by: Names of the rewards that chose the training images, as in `Row.reward`.
        recovered: Share of the best-of-n gap that was recovered, in the headline's score.
        curves: Expected best of k, one for each reward.
        selection: What was kept; `candidates` is how many images it was kept from.
        truncated_prompts: How many prompts the tokenizer cut.
        losses: (step, loss) of the training.
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


def write_report(folder: Path, report: Report) -> Path:
    """Write `folder/report.html` and return its path.

    Raises:
        ValueError: There is no row to report.
    """
    if not report.rows:
        raise ValueError("The report came without a result row; it needs one for its headline. Evaluate first.")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "percent": percent, "data_uri": data_uri}
    page = environment.get_template("page.html.jinja").render(
        report=report, headline=report.rows[0], verdict=verdict(report.rows[0]), figures=figures
    )
    path = folder / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def verdict(row: Row) -> str:
    """'up', 'down', or 'unclear' where the interval holds zero."""
    return "up" if row.ci_low > 0 else "down" if row.ci_high < 0 else "unclear"


def number(value: float) -> str:
    """Three decimals, fewer for large numbers and two digits of tiny ones, with a true minus sign."""
    size = abs(value)
    text = f"{value:.2g}" if 0 < size < 5e-4 else f"{value:.3f}" if size < 100 else f"{value:,.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """`number` with its sign, also where it is a plus."""
    return number(value) if value < 0 else f"+{number(value)}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")


def data_uri(image: Float[Tensor, "3 h w"]) -> str:
    """The image inside a URI: small ones as PNG, pixel by pixel, large ones as WebP of at most 512 pixels a side."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    small = max(picture.size) <= PIXEL_ART_SIDE
    picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    buffer = io.BytesIO()
    kind = "png" if small else "webp"
    picture.save(buffer, format=kind, quality=88)  # PNG is lossless and ignores the quality
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
