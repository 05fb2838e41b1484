"""Whether the words of each dimension move that dimension, and not the others: tables of effects, and margins."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluate import diagonal_margins
from align.report.arms import Effects
from align.state import write_json
from recipes.configs.reward_token import RewardTokenConfig
from recipes.judge import Judge, Judged
from recipes.token_arms import WITHOUT, Arm, asked_for, away_from


def effects_of(
    config: RewardTokenConfig, judge: Judge, judged: Mapping[str, Judged], folder: Path
) -> tuple[list[Effects], list[str]]:
    """Tables of leading away from the words of each dimension, and of asking for them; or why there are none.

    Judge is the first reward, hold-outs before others, that has all the dimensions.
    """
    if not config.dimensions:
        return [], []
    measures = [reward.rpartition(".")[2] for reward in config.dimensions.values()]
    scores = judged[WITHOUT.name].scores
    able = [name for name in scores if {*measures} <= {*judge.rewards[name].dimensions}]
    if not able:
        return [], [f"There are no tables of effects, as no reward judges all of {', '.join(measures)}."]
    columns = [list(judge.rewards[able[0]].dimensions).index(measure) for measure in measures]
    if still := [m for m, column in zip(measures, columns, strict=True) if not scores[able[0]][:, column].std() > 0]:
        return [], [f"There are no tables of effects: {able[0]} gives all images the same {', '.join(still)}."]
    found = [
        _effects(title, sign, [way(words) for words in config.dimensions], judged, able[0], measures, columns, config)
        for title, sign, way in (("led away from", 1.0, away_from), ("asked for", -1.0, asked_for))
    ]
    write_json(folder / "evaluation" / "dimensions.json", [asdict(one) for one in found])
    return found, []


def _effects(
    title: str,
    sign: float,
    arms: Sequence[Arm],
    judged: Mapping[str, Judged],
    reward: str,
    measures: Sequence[str],
    columns: Sequence[int],
    config: RewardTokenConfig,
) -> Effects:
    without = judged[WITHOUT.name].scores[reward][:, columns]
    changes = torch.stack([judged[arm.name].scores[reward][:, columns] - without for arm in arms], dim=2)
    by_prompt = _by_prompt(changes / without.std(0)[:, None], judged[WITHOUT.name].n)
    return Effects(
        f"{reward}, {title}",
        measures,
        [words.strip() for words in config.dimensions],
        by_prompt.mean(0).tolist(),
        diagonal_margins(sign * by_prompt, config.seed),
    )


def _by_prompt(values: Float[Tensor, "image measure token"], n: int) -> Float[Tensor, "prompt measure token"]:
    """The mean over the `n` images of each prompt."""
    return values.unflatten(0, (-1, n)).mean(1)


def as_text(effects: Sequence[Effects]) -> str:
    """The tables for the terminal."""
    return "\n".join(line for one in effects for line in _lines(one))


def _lines(one: Effects) -> list[str]:
    width, space = max(map(len, one.treatments)) + 2, max(map(len, one.measures)) + 2
    head = " " * space + "".join(f"{name:>{width}}" for name in one.treatments)
    lines = [f"{one.title}, in standard deviations", f"{head}  own minus best other"]
    for measure, row, margin in zip(one.measures, one.means, one.margins, strict=True):
        cells = "".join(f"{value:>+{width}.3f}" for value in row)
        lines.append(f"{measure:<{space}}{cells}  {margin.value:+.3f} [{margin.ci_low:+.3f}, {margin.ci_high:+.3f}]")
    return lines
