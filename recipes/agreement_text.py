"""How far rewards agree with people, to read: tables in Markdown, which a terminal shows as well."""

from collections.abc import Mapping, Sequence

from align.evaluate import Estimate
from align.report.templates import number
from recipes.agreement_table import NOTES, Agreed
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.saliency import HEATMAP_METRICS

NONE = "\N{EN DASH}"


Titled = tuple[str, Sequence[str], Sequence[tuple[str, Sequence[str]]], str]
"""Title, columns, rows (a name and its cells), and a note."""


def as_markdown(found: Sequence[Agreed]) -> str:
    """A table for each kind of answer; what a reward does not give is a dash."""
    return "\n\n".join(_markdown(*one) for one in tables(found)) + "\n"


def tables(found: Sequence[Agreed]) -> list[Titled]:
    """The tables that have something to say."""
    rewards = list(dict.fromkeys(one.reward for one in found))
    made = [
        _table("Pearson's correlation with people's scores (PLCC)", found, rewards, SCORES, "PLCC"),
        _table("Spearman's correlation (SRCC)", found, rewards, SCORES, "SRCC"),
        *(_map_table(found, rewards, name) for name in HEATMAPS),
        _word_table(found, rewards),
        _above_table(found),
    ]
    return [one for one in made if one[2]]


def show(estimate: Estimate | None) -> str:
    """A number with its interval."""
    if estimate is None or estimate.value != estimate.value:
        return NONE
    if estimate.ci_low is None or estimate.ci_high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.ci_low)} to {number(estimate.ci_high)})"


def find(found: Sequence[Agreed], reward: str, target: str, metric: str) -> Estimate | None:
    """One number of the table."""
    key = (reward, target, metric)
    return next((one.estimate for one in found if (one.reward, one.target, one.metric) == key), None)


def _table(title: str, found: Sequence[Agreed], rewards: Sequence[str], targets: Sequence[str], metric: str) -> Titled:
    rows = [(name, [show(find(found, name, target, metric)) for target in targets]) for name in rewards]
    counts, total = {one.reward: one.n for one in found}, max((one.n for one in found), default=0)
    notes = {name: note + _part(counts[name], total) for name, note in NOTES.items() if name in counts}
    return _lines(title, targets, rows, notes)


def _part(n: int, total: int) -> str:
    """On which images a number rests, where it is not all."""
    return "" if n == total else f" (on {n:,} of {total:,} images, all with the same number of annotators)"


def _map_table(found: Sequence[Agreed], rewards: Sequence[str], name: str) -> Titled:
    rows = [(reward, [show(find(found, reward, name, metric)) for metric in HEATMAP_METRICS]) for reward in rewards]
    counts = [one.n for one in found if (one.target, one.metric) == (name, "cc")]
    title = f"Heatmap of {name}" + (f" ({counts[0]:,} images have something marked)" if counts else "")
    return _lines(title, HEATMAP_METRICS, rows)


def _word_table(found: Sequence[Agreed], rewards: Sequence[str]) -> Titled:
    metrics = [f"{metric}{of}" for of in ("", " per sample") for metric in ("precision", "recall", "F1")]
    rows = [(reward, [show(find(found, reward, "words", metric)) for metric in metrics]) for reward in rewards]
    return _lines("Misaligned words", metrics, rows)


def _above_table(found: Sequence[Agreed]) -> Titled:
    differences = [one for one in found if one.metric.startswith("PLCC above")]
    names = list(dict.fromkeys((one.reward, one.metric) for one in differences))
    rows = [
        (metric.removeprefix("PLCC above "), [show(find(found, reward, target, metric)) for target in SCORES])
        for reward, metric in names
    ]
    return _lines(f"PLCC of {names[0][0]} above that of" if names else "", SCORES, rows)


def _lines(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], notes: Mapping[str, str] = NOTES
) -> Titled:
    """Rows that have something to say, under a title, with the notes on those of these names."""
    told = [row for row in rows if any(cell != NONE for cell in row[1])]
    return title, columns, told, " ".join(f"{name}: {notes[name]}." for name, _ in told if name in notes)


def _markdown(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], note: str) -> str:
    cells = [["", *columns], *([name, *values] for name, values in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    head, *lines = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells)
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([f"{title}:", "", head, rule, *lines, *(["", note] if note else [])])
