"""The page of a filter_finetune run: headline, before and after, what N buys, what was selected, how training went."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluate import RecoveredGap, Row
from align.log import Log, read_metrics
from align.report.page import Curve, Histogram, Pair, Report, write_report
from align.samples import SampleStore
from align.select import Selection, expected_best_of_k
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.settings import leaf_fields

Scores = Mapping[str, Float[Tensor, "image dimension"]]
PAIRS = 32


def report(
    config: FilterFinetuneConfig,
    folder: Path,
    stores: tuple[SampleStore, SampleStore],
    scores: tuple[Scores, Scores],
    rows: Sequence[Row],
    gap: RecoveredGap,
    selection: Selection,
    candidates: Float[Tensor, "candidate 1"],
    truncated: int,
    log: Log,
) -> Path:
    """Write `folder/report.html`, mirror its pictures to the trackers, and print the table."""
    headline = rows[0].reward
    pairs = before_and_after(stores, tuple(score[headline][:, 0] for score in scores))
    page = Report(
        title=f"Best-of-{config.samples_per_prompt} fine-tuning of {config.pretrained_model_name_or_path}",
        rows=rows,
        pairs=pairs,
        settings=flat(config),
        selected_by=[rows[-1].reward],
        recovered=gap,
        curves=[curve(rows[-1], scores, headline, config.evaluate.samples_per_prompt)],
        selection=selection,
        candidates=len(candidates),
        histograms=[histogram(rows[-1].reward, candidates, selection, config.samples_per_prompt)],
        truncated_prompts=truncated,
        losses=[(row["step"], row["loss"]) for row in read_metrics(folder) if row["phase"] == "train"],
    )
    mirror(rows, pairs, config.train.max_train_steps, log)
    path = write_report(folder, page)
    print(f"{table(rows, gap)}\nreport: {path}")
    return path


def before_and_after(stores: tuple[SampleStore, SampleStore], scores: tuple[Tensor, ...]) -> list[Pair]:
    """The first samples of the first held-out prompts: the choice does not look at the scores."""
    before, after = (store.rows() for store in stores)
    chosen = [index for index, row in enumerate(before) if row.sample_index == 0][:PAIRS]
    images = [store.load([rows[i] for i in chosen]) for store, rows in zip(stores, (before, after), strict=True)]
    return [
        Pair(before[i].text, before[i].seed, base, tuned, scores[0][i].item(), scores[1][i].item())
        for i, base, tuned in zip(chosen, *images, strict=True)
    ]


def curve(selector: Row, scores: tuple[Scores, Scores], headline: str, n: int) -> Curve:
    """What the base model's best of k, chosen by the selecting reward, is worth to the headline's judge."""
    base, tuned = (score[headline][:, 0].reshape(-1, n) for score in scores)
    means = expected_best_of_k(scores[0][selector.reward].reshape(-1, n), judge=base)
    return Curve(f"{headline}, best of k by {selector.reward}", means.tolist(), tuned.mean().item())


def histogram(name: str, candidates: Float[Tensor, "candidate 1"], selection: Selection, n: int) -> Histogram:
    """Scores of all candidates and of the selected ones."""
    values = candidates[:, 0]
    selected = [values[prompt * n + sample].item() for prompt, sample in selection.kept]
    return Histogram(name, values.tolist(), selected, selection.threshold)


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
