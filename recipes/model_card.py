"""The model card of a filter_finetune run: a README.md that says what the LoRA is, how to use it and what it is worth.

The Hub shows it where the folder is pushed to; `huggingface_hub.ModelCard.load` reads it.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Template

from align.evaluate import RecoveredGap, Row
from align.report.page import DIVERSITY
from align.report.templates import environment
from align.state import atomic_path
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.reward_names import selector_and_holdouts

MARKER = "<!-- This card was written by align,"
"""Tells our cards from a user's own files."""

SHIPPED = "sandbox"
"""The base model that comes with align: under align's own licence, and no repository on the Hub."""


def write_card(
    folder: Path,
    config: FilterFinetuneConfig,
    rows: Sequence[Row],
    recovered: RecoveredGap | None,
    base_model: str,
    licences: Mapping[str, str],
) -> Path:
    """Write `folder/README.md` and return its path; MODEL_CARD.md where a README.md is there that is not align's.

    `rows` is the evaluation, the headline first; `licences` are those of the rewards' weights, by the rewards' names.

    Raises:
        ValueError: Both files are there, and align wrote neither.
    """
    selector, *holdouts = selector_and_holdouts(config.rewards, config.holdout_rewards)
    text = _template().render(
        marker=MARKER,
        front_matter=_front_matter(base_model).to_yaml(),
        base=_public_name(base_model),
        is_shipped=base_model == SHIPPED,
        is_on_hub=_is_on_hub(base_model),
        weight_name=LORA_WEIGHT_NAME_SAFE,
        config=config,
        selector=selector,
        holdouts=holdouts,
        rows=rows,
        diversity=DIVERSITY if DIVERSITY in [row.reward for row in rows] else None,
        recovered=recovered,
        prompts=rows[0].n // config.evaluate.samples_per_prompt,
        licences=licences,
        settings=_settings(config, base_model),
    )
    path = _free_place(folder)
    with atomic_path(path) as temporary:
        temporary.write_text(str(ModelCard(text)), encoding="utf-8")
    return path


def _template() -> Template:
    texts: dict[str, Any] = {"md": _escape, "fenced": _fenced, "quoted": _quoted, "shell": shlex.quote}
    return environment(Path(__file__).parent, texts, autoescape=False).get_template("model_card.md.jinja")


def _free_place(folder: Path) -> Path:
    """Where the card goes without overwriting what is a user's own."""
    readme, other = folder / "README.md", folder / "MODEL_CARD.md"
    if _is_ours(readme):
        return readme
    if not _is_ours(other):
        raise ValueError(
            f"{readme} and {other} are both there, and align wrote neither; the model card needs one of these names. "
            "Move one of them and run the same command again."
        )
    print(f"{readme} was not written by align and stays as it is; the model card is {other}")
    return other


def _is_ours(path: Path) -> bool:
    """Whether align may write there: nothing is there, or an earlier card."""
    return not path.exists() or MARKER in path.read_text(encoding="utf-8", errors="replace")


def _front_matter(base_model: str) -> ModelCardData:
    return ModelCardData(
        base_model=base_model if _is_on_hub(base_model) else None,
        library_name="diffusers",
        license="apache-2.0" if base_model == SHIPPED else None,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "diffusers-training", "lora", "align"],
    )


def _is_on_hub(base_model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base_model)) and not Path(base_model).exists()


def _public_name(base_model: str) -> str:
    """A folder by its own name alone: where it lies on somebody's disk is nobody's business."""
    return base_model if base_model == SHIPPED or _is_on_hub(base_model) else Path(base_model).resolve().name


def _settings(config: FilterFinetuneConfig, base_model: str) -> str:
    """The resolved configuration as YAML, without the places of files on somebody's disk."""
    settings = _without_places(config.model_dump()) | {"pretrained_model_name_or_path": _public_name(base_model)}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(child) for key, child in value.items()}
    return value.name if isinstance(value, Path) else value


def _escape(text: str) -> str:
    """A user's string as the plain text of a paragraph or of a table's cell."""
    return re.sub(r"([\\`*_{}\[\]<>|~&$])", r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    """A string of Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _fenced(text: str, language: str) -> str:
    """A block of code, in a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"
