"""What the page on a reward's agreement with people shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from align.device import pick_device
from align.report.agreement import AgreementReport, Draw, ExamplePicture, Table
from align.report.overlay import overlay
from recipes.agreement_table import Agreed
from recipes.agreement_text import tables
from recipes.configs.evaluate_reward import EvaluateRewardConfig
from rewards.agreement import Agreement, fit_map, people
from rewards.base import Critic, Critique, Reward
from rewards.datasets.rich_feedback import RichFeedback
from rewards.rahf.network import HEATMAPS, SCORES

SHOWN = 6
"""Examples from either end."""


def page(
    config: EvaluateRewardConfig,
    name: str,
    reward: Reward,
    agreement: Agreement,
    rows: Sequence[RichFeedback],
    found: Sequence[Agreed],
) -> AgreementReport:
    """The page about the first reward, with the numbers of all."""
    named = [(score, column) for score in SCORES if (column := agreement.column(score)) is not None]
    mine = [one for one in found if one.reward == name]
    headline = next((one for one in mine if one.metric == "PLCC"), mine[0])
    return AgreementReport(
        reward=name,
        headline=(headline.estimate.value, f"{headline.metric} with people's {headline.target}"),
        data=config.data,
        images=len(rows),
        prompts=len({row.prompt for row in rows}),
        tables=[Table(title, columns, cells, note) for title, columns, cells, note in tables(found)],
        clouds={
            score: list(zip(people(rows, score).tolist(), column.tolist(), strict=True)) for score, column in named
        },
        examples=_examples(config, reward, agreement, rows),
        notes=_notes(config),
    )


def _notes(config: EvaluateRewardConfig) -> list[str]:
    return [
        "Numbers in brackets are the ends of 95 % intervals over prompts. Maps are compared at the size of people's, "
        f"by the conventions of {config.conventions}."
    ]


def _examples(
    config: EvaluateRewardConfig, reward: Reward, agreement: Agreement, rows: Sequence[RichFeedback]
) -> dict[str, list[ExamplePicture]]:
    """Images at both ends: by the agreement of each map, and by how far the first score is off."""
    chosen: dict[str, list[int]] = {}
    for name, columns in agreement.maps.items():
        best = _ordered(-columns["cc"])
        chosen[f"Heatmap of {name}: agrees most"] = best[:SHOWN]
        chosen[f"Heatmap of {name}: agrees least"] = best[::-1][:SHOWN]
    target = next(iter(SCORES))
    if (column := agreement.column(target)) is not None and target in agreement.scores:
        off = _ordered(-np.abs(column - people(rows, target)))
        chosen[f"Score of {target}: furthest off"] = off[:SHOWN]
    return {
        title: [_picture(config, reward, agreement, rows[place], place) for place in places]
        for title, places in chosen.items()
    }


def _ordered(values: Float[np.ndarray, " n"]) -> list[int]:
    """Places by rising value, without those where it is not defined."""
    return [place for place in np.argsort(values, kind="stable").tolist() if np.isfinite(values[place])]


def _picture(
    config: EvaluateRewardConfig, reward: Reward, agreement: Agreement, row: RichFeedback, place: int
) -> ExamplePicture:
    shown = _Shown(reward, row, config.device)
    views: dict[str, Draw] = {"image": lambda: shown.image}
    if isinstance(reward, Critic):
        for name in [name for name in HEATMAPS if name in reward.heatmaps]:
            views[f"{name}: people"] = lambda name=name: shown.under(row.heatmaps[name]())
            views[f"{name}: predicted"] = lambda name=name: shown.under(shown.critique.heatmaps[name][0].cpu())
    scores = [
        (name, float(values[place]), row.scores[name]) for name, values in agreement.scores.items() if name in SCORES
    ]
    called = shown.critique.misaligned[0] if isinstance(reward, Critic) else [False] * len(row.words)
    return ExamplePicture(row.image_id, views, scores, list(zip(row.words, row.misaligned, called, strict=True)))


@dataclass
class _Shown:
    """One image of the page: read, and asked about, when it is drawn."""

    reward: Reward
    row: RichFeedback
    device: str

    @cached_property
    def image(self) -> Float[Tensor, "3 h w"]:
        return self.row.image()

    @cached_property
    def critique(self) -> Critique:
        assert isinstance(self.reward, Critic)
        with torch.no_grad():
            return self.reward.critique([self.image.to(pick_device(self.device))], [self.row.prompt])

    def under(self, heat: Float[Tensor, "h w"]) -> Float[Tensor, "3 image_h image_w"]:
        return overlay(self.image, fit_map(heat, self.image.shape[1:]))
