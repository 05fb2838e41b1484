"""The page of a filter_finetune run: headline, before and after, what N buys, what was selected, how training went."""

from collections.abc import Sequence
from pathlib import Path

import torch

from align.evaluate import RecoveredGap, Row
from align.log import Log, read_metrics
from align.report.page import Curve, Histogram, Pair, Report, write_report
from align.select import Selection, expected_best_of_k
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.judge import Judged, recovered
from recipes.settings import leaf_fields

PAIRS = 32


def report(
    config: FilterFinetuneConfig,
    folder: Path,
    candidates: Judged,
    selection: Selection,
    base: Judged,
    tuned: Judged,
    rows: Sequence[Row],
    truncated: int,
    log: Log,
) -> Path:
    """Write `folder/report.html`, mirror its pictures to the trackers, and print the table.

    The first row is the headline, the last one is of the reward that selected.
    """
    headline, selector = rows[0].reward, rows[-1].reward
    gap = recovered(base, tuned, selector, headline, config.seed)
    pairs = before_and_after(base, tuned, headline)
    page = Report(
        title=f"Best-of-{candidates.n} fine-tuning of {config.pretrained_model_name_or_path}",
        rows=rows,
        pairs=pairs,
        settings=flat(config),
        selected_by=[selector],
        recovered=gap,
        curves=[curve(base, tuned, selector, headline)],
        selection=selection,
        candidates=candidates.first(selector).numel(),
        histograms=[histogram(candidates, selection, selector)],
        truncated_prompts=truncated,
        losses=[(row["step"], row["loss"]) for row in read_metrics(folder) if row["phase"] == "train"],
    )
    mirror(rows, pairs, config.train.max_train_steps, log)
    path = write_report(folder, page)
    print(f"{table(rows, gap)}\nreport: {path}")
    return path


def before_and_after(base: Judged, tuned: Judged, headline: str) -> list[Pair]:
    """The first sample of the first held-out prompts: the choice does not look at the scores."""
    before, after = base.store.rows()[:: base.n][:PAIRS], tuned.store.rows()[:: tuned.n][:PAIRS]
    scores = base.first(headline)[:, 0].tolist(), tuned.first(headline)[:, 0].tolist()
    images = base.store.load(before), tuned.store.load(after)
    return [
        Pair(row.text, row.seed, *pictures, *values)
        for row, pictures, values in zip(
            before, zip(*images, strict=True), zip(*(part[:PAIRS] for part in scores), strict=True), strict=True
        )
    ]


def curve(base: Judged, tuned: Judged, selector: str, headline: str) -> Curve:
    """What the base model's best of k, chosen by the selecting reward, is worth to the headline's judge."""
    means = expected_best_of_k(base.first(selector), judge=base.first(headline))
    return Curve(f"{headline}, best of k by {selector}", means.tolist(), tuned.first(headline).mean().item())


def histogram(candidates: Judged, selection: Selection, selector: str) -> Histogram:
    """Scores of all candidates and of the selected ones."""
    scores = candidates.first(selector)
    selected = [scores[index].item() for index in selection.kept]
    return Histogram(selector, scores.flatten().tolist(), selected, selection.threshold)


def flat(config: FilterFinetuneConfig) -> dict[str, object]:
    """Every setting by its dotted key."""
    settings: dict[str, object] = {}
    for key in leaf_fields(FilterFinetuneConfig):
        value: object = config
        for part in key.split("."):
            value = getattr(value, part)
        settings[key] = value
    return settings


def mirror(rows: Sequence[Row], pairs: Sequence[Pair], step: int, log: Log) -> None:
    """The result and the pictures in the log and the trackers, once: a repeated phase replaces what it logged."""
    log.rewind("evaluate", 0)
    named = {f"{row.reward}.{row.dimension}": row for row in rows}
    differences = {f"{name}/difference": row.difference for name, row in named.items()}
    log.metrics(step, differences | {f"{name}/win_rate": row.win_rate for name, row in named.items()}, "evaluate")
    grid = {f"pair_{i:02d}": (torch.cat([pair.base, pair.tuned], dim=2), pair.prompt) for i, pair in enumerate(pairs)}
    log.images(step, grid, "evaluate")


def table(rows: Sequence[Row], gap: RecoveredGap) -> str:
    """The result for the terminal."""
    lines = [f"{'reward':<28} {'dimension':<13} {'base':>8} {'tuned':>8} {'difference':>11}  95 % interval       wins"]
    lines += [
        f"{row.reward:<28} {row.dimension:<13} {row.base_mean:>8.4f} {row.tuned_mean:>8.4f} {row.difference:>+11.4f}  "
        f"[{row.ci_low:+.4f}, {row.ci_high:+.4f}] {row.win_rate:>6.1%}"
        for row in rows
    ]
    if gap.share is not None:
        lines.append(
            f"recovered {gap.share:.0%} of the gap between the base model's mean and its own best of n "
            f"(95 % interval {gap.ci_low:.0%} to {gap.ci_high:.0%})"
        )
    return "\n".join(lines)
