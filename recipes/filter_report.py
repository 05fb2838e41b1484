"""The page of a filter_finetune run: headline, before and after, what N buys, what was selected, how training went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from align.evaluate import Row, mean_interval
from align.log import Log, read_metrics
from align.report.page import Curve, Grid, Histogram, Pair, Report, Series, write_report
from align.select import Selection, best_of_k_by_prompt
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.filter_mirror import mirror, table
from recipes.judge import Judged, recovered
from recipes.model_card import write_card
from recipes.settings import leaf_fields
from recipes.watch import seen_steps
from rewards.names import find_cards

PAIRS = 32
EXTREMES = 6
"""How many of the most improved and of the most damaged prompts are shown."""


@dataclass(frozen=True)
class Round:
    """What one round made: its folder, candidates and which were kept, the tuned model's images, and the comparison."""

    folder: Path
    candidates: Judged
    selection: Selection
    tuned: Judged
    rows: Sequence[Row]


def report(
    config: FilterFinetuneConfig, folder: Path, base: Judged, rounds: Sequence[Round], truncated: int, log: Log
) -> Path:
    """Write `folder/report.html` and the model card, mirror the pictures to the trackers, and print the table.

    The first row is the headline; the last reward that scored `base` is the one that selected.
    """
    last, selector = rounds[-1], list(base.scores)[-1]
    tuned, rows = last.tuned, last.rows
    headline = rows[0].reward
    gap = recovered(base, tuned, selector, headline, config.seed)
    pairs, metrics = before_and_after(base, tuned, headline), read_metrics(folder)
    damaged, improved = extremes(base, tuned, headline)
    title = f"Best-of-{last.candidates.n} fine-tuning of {config.pretrained_model_name_or_path}"
    page = Report(
        title=title,
        rows=rows,
        pairs=pairs,
        settings=flat(config),
        selected_by=[selector],
        recovered=gap,
        curves=curves(base, tuned, rounds[0].candidates, selector, headline, config.seed),
        selection=last.selection,
        candidates=last.candidates.first(selector).numel(),
        histograms=[histogram(one, selector, number, len(rounds)) for number, one in enumerate(rounds, start=1)],
        truncated_prompts=truncated,
        losses=[(row["step"], row["loss"]) for row in metrics if row["phase"] == "train"],
        grids=grids(rounds, config.train.max_train_steps),
        grid_prompts=[row.text for row in base.rows[:: base.n][: config.num_validation_prompts]],
        validation=series([row for row in metrics if row["phase"] == "validation"]),
        improved=improved,
        damaged=damaged,
        rounds=[(number, one.rows[0]) for number, one in enumerate(rounds, start=1)] if len(rounds) > 1 else (),
    )
    path = write_report(folder, page)
    licences = {name: card.licence for spec in base.scores for name, card in find_cards(spec)}
    write_card(folder, config, rows, gap, config.pretrained_model_name_or_path, licences)
    mirror(folder, rows, pairs, base, tuned, config.train.max_train_steps * len(rounds), log)
    print(f"{table(rows, gap)}\nreport: {path}")
    return path


def before_and_after(base: Judged, tuned: Judged, headline: str) -> list[Pair]:
    """The first sample of the first held-out prompts: the choice does not look at the scores."""
    return [pair(base, tuned, headline, prompt, 0) for prompt in range(min(PAIRS, len(base.first(headline))))]


def extremes(base: Judged, tuned: Judged, headline: str) -> tuple[list[Pair], list[Pair]]:
    """The prompts whose mean score fell most, and those whose rose most, each by its median image.

    The image is the one whose change is the prompt's middle one: the largest change would be the luck of one seed.
    """
    change = tuned.first(headline) - base.first(headline)
    means, middle = change.mean(1), change.argsort(dim=1, stable=True)[:, (base.n - 1) // 2].tolist()
    order = means.argsort(stable=True).tolist()
    fell = [prompt for prompt in order[:EXTREMES] if means[prompt] < 0]
    rose = [prompt for prompt in order[: -EXTREMES - 1 : -1] if means[prompt] > 0]
    return (
        [pair(base, tuned, headline, prompt, middle[prompt]) for prompt in fell],
        [pair(base, tuned, headline, prompt, middle[prompt]) for prompt in rose],
    )


def pair(base: Judged, tuned: Judged, headline: str, prompt: int, sample: int) -> Pair:
    """One image of a prompt from both models."""
    row = base.rows[prompt * base.n + sample]
    images = [judged.store.load([judged.rows[prompt * base.n + sample]])[0] for judged in (base, tuned)]
    scores = [judged.first(headline)[prompt, sample].item() for judged in (base, tuned)]
    return Pair(row.text, row.seed, images[0], images[1], scores[0], scores[1])


def curves(base: Judged, tuned: Judged, candidates: Judged, selector: str, headline: str, seed: int) -> list[Curve]:
    """What the best of k is worth to the headline's judge on held-out prompts, and to the selecting reward itself on
    the candidates."""
    judged = best_of_k_by_prompt(base.first(selector), judge=base.first(headline))
    own = best_of_k_by_prompt(candidates.first(selector))
    mean = tuned.first(headline).mean().item()
    return [
        curve(f"{headline}, best of k by {selector}", judged, seed, mean),
        curve(f"{selector}, best of k of the candidates", own, seed, None),
    ]


def curve(name: str, by_prompt: Float[Tensor, "prompt k"], seed: int, tuned_mean: float | None) -> Curve:
    """The mean over the prompts, with its interval where there are several."""
    if len(by_prompt) < 2:
        return Curve(name, by_prompt[0].tolist(), tuned_mean)
    means, lows, highs = mean_interval(by_prompt, seed)
    return Curve(name, means.tolist(), tuned_mean, lows.tolist(), highs.tolist())


def histogram(one: Round, selector: str, number: int, rounds: int) -> Histogram:
    """Scores of all candidates of a round and of the selected ones."""
    scores = one.candidates.first(selector)
    selected = [scores[index].item() for index in one.selection.kept]
    name = selector if rounds == 1 else f"{selector}, round {number}"
    return Histogram(name, scores.flatten().tolist(), selected, one.selection.threshold)


def grids(rounds: Sequence[Round], steps: int) -> list[Grid]:
    """The images of the fixed prompts, by the step counted from the first round on."""
    return [
        Grid(number * steps + step, list(store.load(store.rows())))
        for number, one in enumerate(rounds)
        for step, store in seen_steps(one.folder / "validation")
        if step > 0 or number == 0  # a later round starts where the one before it ended
    ]


def series(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """A curve for each score of the fixed prompts."""
    names = [name for name in (rows[0] if rows else {}) if name not in ("time", "phase", "step")]
    return [Series(name, [(int(row["step"]), row[name]) for row in rows]) for name in names]


def flat(config: FilterFinetuneConfig) -> dict[str, object]:
    """Every setting by its dotted key."""
    settings: dict[str, object] = {}
    for key in leaf_fields(FilterFinetuneConfig):
        value: object = config
        for part in key.split("."):
            value = getattr(value, part)
        settings[key] = value
    return settings
