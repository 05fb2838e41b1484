"""The model card of a filter_finetune run: what the LoRA is, how to use it and what it is worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from align.evaluate import RecoveredGap, Row
from align.report.page import DIVERSITY
from recipes.card_file import write_card_file
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.reward_names import selector_and_holdouts


def write_card(
    folder: Path,
    config: FilterFinetuneConfig,
    rows: Sequence[Row],
    recovered: RecoveredGap | None,
    base_model: str,
    licences: Mapping[str, str],
) -> Path:
    """Write the card and return its path, see `write_card_file`.

    `rows` is the evaluation, the headline first; `licences` are those of the rewards' weights, by the rewards' names.
    """
    selector, *holdouts = selector_and_holdouts(config.rewards, config.holdout_rewards)
    return write_card_file(
        folder,
        "model_card.md.jinja",
        config,
        base_model,
        selector=selector,
        holdouts=holdouts,
        rows=rows,
        diversity=DIVERSITY if DIVERSITY in [row.reward for row in rows] else None,
        recovered=recovered,
        prompts=rows[0].n // config.evaluate.samples_per_prompt,
        licences=licences,
    )
