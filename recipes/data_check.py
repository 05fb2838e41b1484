"""`align data check`: what a set of rich feedback holds, and every row of it that is bad."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cyclopts import App

from recipes.sandbox_feedback import resolve_data
from rewards.datasets.rich import list_splits, read_rich_feedback
from rewards.datasets.rich_feedback import Problem, RichFeedback
from rewards.datasets.richhf import MAX_MISSING
from rewards.datasets.statistics import RichStatistics, rich_statistics

BARS = " ▁▂▃▄▅▆▇█"


def data_app() -> App:
    """The sub-command `align data`."""
    app = App(name="align data", help="Look at rich feedback.", help_format="plaintext", version_flags=())
    app.command(check_data, name="check")
    return app


def check_data(path: Path, /, *, split: str | None = None, max_missing: float = MAX_MISSING) -> None:
    """Print how many images a data set has, how scores lie and people agree, and every bad row.

    Arguments:
        path: The folder, or `sandbox-train`, `sandbox-dev`, `sandbox-test`.
        split: Only this one; all of them if left out.
        max_missing: The share of images that may be missing from the join with Pick-a-Pic.

    Raises:
        ValueError: No data set, or bad rows, which were printed.
    """
    folder, named = resolve_data(str(path))
    chosen = split or named
    bad = sum(_check(folder, name, max_missing) for name in ([chosen] if chosen else list_splits(folder)))
    if bad:
        raise ValueError(
            f"{bad:,} rows are bad; they are named above. Training and evaluation leave them out, or stop at an image "
            "that cannot be decoded. Mend or remove them."
        )


def _check(folder: Path, split: str, max_missing: float) -> int:
    """Print all about one split; the number of its bad rows."""
    problems = list[Problem]()
    rows = list(_decoded(read_rich_feedback(folder, split, problems, max_missing), problems))
    print(f"{split}: {len(rows):,} good rows, {len(problems):,} bad")
    if rows:
        print("\n".join(tell(rich_statistics(rows))))
    for problem in problems:
        print(f"  bad: {problem.row}: {problem.fault}")
    return len(problems)


def _decoded(rows: Iterable[RichFeedback], problems: list[Problem]) -> Iterator[RichFeedback]:
    """The rows whose images can be decoded, which the readers leave to the training."""
    for row in rows:
        try:
            row.image()
        except ValueError as error:
            problems.append(Problem(row.image_id, str(error).removeprefix(f"{row.image_id}: ")))
        else:
            yield row


def tell(found: RichStatistics) -> list[str]:
    """The statistics as lines to read."""
    lines = [f"  {found.images:,} images of {found.prompts:,} prompts"]
    lines += [
        f"  {name:<14} {_bars(counts)}  mean {found.means[name]:.3f}, {counts[-1] / found.images:.0%} from 0.9 on"
        for name, counts in ((name, bins.tolist()) for name, bins in found.scores.items())
    ]
    lines += [
        f"  {name:<14} empty {empty:,} of {found.images:,}; elsewhere {found.heat[name]:.1%} of the pixels are marked"
        for name, empty in found.empty.items()
    ]
    share = found.misaligned / found.words
    agreement = {name: counts / counts.sum() for name, counts in found.spread.items()}
    lines.append(f"  {'words':<14} {found.misaligned:,} of {found.words:,} misaligned ({share:.1%})")
    lines += [
        f"  {name:<14} all agree on {shares[0]:.0%}, within one point on {shares[:2].sum():.0%}"
        for name, shares in agreement.items()
    ]
    return lines if found.spread else [*lines, "  agreement      the data set does not say what each person gave"]


def _bars(counts: Sequence[int]) -> str:
    """A histogram in one line, from 0 on the left to 1 on the right."""
    most = max(counts)
    return "".join(BARS[0 if count == 0 else 1 + round((len(BARS) - 2) * count / most)] for count in counts)
