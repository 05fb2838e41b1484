"""The page of a reward-token run, its result for the terminal, and for W&B and TensorBoard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align.log import Log, read_metrics
from align.report.arms import ArmsReport, Effects, ScalePoint, Versus, Way, write_arms
from align.report.page import Histogram
from recipes.configs.reward_token import RewardTokenConfig
from recipes.judge import Judged
from recipes.settings import leaf_fields
from recipes.token_arms import BASE, TUNED, Ways
from recipes.token_card import write_token_card
from recipes.token_choice import Choice, Scores
from recipes.token_dimensions import as_text
from recipes.token_judge import Comparison, GuidancePoint, as_table
from recipes.token_words import identifiers, spoken

SHOWN = 16
"""Prompts whose pictures are shown."""


@dataclass(frozen=True)
class Findings:
    """What came out of a run.

    Attributes:
        ways: In which it was drawn.
        judged: Images and scores of each way, by its name.
        comparisons: Of one way with another, the headline first.
        effects: Of the words of each dimension on all of them, if there are several.
        points: Base and tuned model at other guidance scales.
        choice: What was trained on.
        scores: Of all images that were selected from.
        notes: What a reader must know.
    """

    ways: Ways
    judged: Mapping[str, Judged]
    comparisons: Sequence[Comparison]
    effects: Sequence[Effects]
    points: Sequence[GuidancePoint]
    choice: Choice
    scores: Scores
    notes: Sequence[str]


def report(config: RewardTokenConfig, folder: Path, found: Findings, log: Log) -> Path:
    """Write `folder/report.html` and the model card, log what came out, and print the table."""
    judged, base = found.judged, found.judged[BASE.name]
    losses = [(row["step"], row["loss"]) for row in read_metrics(folder) if row["phase"] == "train"]
    words = ", ".join(map(spoken, identifiers(config)))
    page = ArmsReport(
        title=f"A reward token for {config.pretrained_model_name_or_path}: {words}",
        comparisons=[Versus(one.arm.title, one.against.title, one.rows) for one in found.comparisons],
        ways=[Way(arm.title, pictures(judged[arm.name])) for arm in found.ways.arms],
        prompts=[row.text for row in base.rows[:: base.n][:SHOWN]],
        base_by_scale=by_scale(found.points, BASE.name),
        tuned_by_scale=by_scale(found.points, TUNED),
        notes=[f"Trained on {found.choice}.", *found.notes],
        histograms=[
            Histogram(f"{group.reward}, {group.name}", every.tolist(), every[list(group.places)].tolist())
            for group in found.choice.groups
            for every in (found.scores[group.reward],)
        ],
        losses=by_training(config, losses),
        settings=flat(config),
        effects=found.effects,
    )
    path = write_arms(folder, page)
    write_token_card(folder, config, found.choice, found.comparisons)
    mirror(folder, found.comparisons, max((step for step, _ in losses), default=0), log)
    effects = [as_text(found.effects)] if found.effects else []
    print("\n".join([as_table(found.comparisons), *effects, f"report: {path}"]))
    return path


def by_training(config: RewardTokenConfig, losses: Sequence[tuple[int, float]]) -> dict[str, list[tuple[int, float]]]:
    """The losses of each training, which follow each other in the log, counted from 1."""
    steps, first = config.train.max_train_steps, 0
    named = {"the embedding": config.embedding.max_train_steps, "the LoRA": steps, "the control": steps}
    found: dict[str, list[tuple[int, float]]] = {}
    for name, count in named.items():
        found[f"Loss of {name}"] = [(step - first, loss) for step, loss in losses if first < step <= first + count]
        first += count
    return found


def pictures(judged: Judged) -> list[Float[Tensor, "3 h w"]]:
    """The first image of each of the first prompts."""
    return list(judged.store.load(judged.rows[:: judged.n][:SHOWN]))


def by_scale(points: Sequence[GuidancePoint], arm: str) -> list[ScalePoint]:
    """The curve of one arm."""
    return [(one.guidance_scale, one.mean, one.ci_low, one.ci_high) for one in points if one.arm == arm]


def mirror(folder: Path, comparisons: Sequence[Comparison], last: int, log: Log) -> None:
    """The result in the log and the trackers; a repeated phase replaces what it logged."""
    log.rewind("evaluate", 0)
    named = {
        f"{one.arm.name}-{one.against.name}/{row.reward}.{row.dimension}": row.difference
        for one in comparisons
        for row in one.rows
    }
    log.metrics(last, named, "evaluate")
    log.artifact(folder / "lora", "lora", "model")
    log.artifact(folder / "report.html", "report", "report")


def flat(config: RewardTokenConfig) -> dict[str, object]:
    """Every setting by its dotted key."""
    settings: dict[str, object] = {}
    for key in leaf_fields(RewardTokenConfig):
        value: object = config
        for part in key.split("."):
            value = getattr(value, part)
        settings[key] = value
    return settings
