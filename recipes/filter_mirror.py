"""The result of a filter_finetune run for the terminal and for W&B and TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import torch

from align.evaluate import RecoveredGap, Row
from align.log import Cell, Log
from align.report.page import Pair
from recipes.judge import Judged

SAMPLED = 32
"""Images of each model in the trackers' table."""


def mirror(
    folder: Path, rows: Sequence[Row], pairs: Sequence[Pair], base: Judged, tuned: Judged, step: int, log: Log
) -> None:
    """The result, the pictures and the LoRA in the log and the trackers; a repeated phase replaces what it logged."""
    log.rewind("evaluate", 0)
    named = {f"{row.reward}.{row.dimension}": row for row in rows}
    differences = {f"{name}/difference": row.difference for name, row in named.items()}
    log.metrics(step, differences | {f"{name}/win_rate": row.win_rate for name, row in named.items()}, "evaluate")
    grid = {f"pair_{i:02d}": (torch.cat([pair.base, pair.tuned], dim=2), pair.prompt) for i, pair in enumerate(pairs)}
    log.images(step, grid, "evaluate")
    log.table(step, "samples", [*sampled("base", base, rows), *sampled("tuned", tuned, rows)], "evaluate")
    log.artifact(folder / "lora", "lora", "model")
    log.artifact(folder / "report.html", "report", "report")  # histograms and curves are there alone


def sampled(model: str, judged: Judged, results: Sequence[Row]) -> list[dict[str, Cell]]:
    """The first image of each of the first prompts, with its prompt, seed and every score."""
    picked = list(range(0, len(judged.rows), judged.n)[:SAMPLED])
    rows = [judged.rows[index] for index in picked]
    dimensions = {name: [row.dimension for row in results if row.reward == name] for name in judged.scores}
    columns = {
        f"{name}.{dimension}": judged.scores[name][picked, column].tolist()
        for name, names in dimensions.items()
        for column, dimension in enumerate(names)
    }
    return [
        {"model": model, "prompt": row.text, "seed": row.seed, "image": image}
        | {name: values[index] for name, values in columns.items()}
        for index, (row, image) in enumerate(zip(rows, judged.store.load(rows), strict=True))
    ]


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
