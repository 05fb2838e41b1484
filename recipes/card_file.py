"""What the model cards of all recipes share: where a card is written, its front matter, and how strings are escaped.

The Hub shows a card where the folder is pushed to; `huggingface_hub.ModelCard.load` reads it.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard, ModelCardData

from align.report.templates import environment
from align.state import atomic_path
from recipes.settings import Settings

MARKER = "<!-- This card was written by align,"
"""Tells our cards from a user's own files."""

SHIPPED = "sandbox"
"""The base model that comes with align: under align's own licence, and no repository on the Hub."""


def write_card_file(folder: Path, template: str, config: Settings, base_model: str, **values: object) -> Path:
    """Fill a template of this folder, and write it to `folder/README.md`, or MODEL_CARD.md where that is a user's own.

    Raises:
        ValueError: Both files are there, and align wrote neither.
    """
    texts: dict[str, Any] = {"md": _escape, "fenced": _fenced, "quoted": _quoted, "shell": shlex.quote}
    text = (
        environment(Path(__file__).parent, texts, autoescape=False)
        .get_template(template)
        .render(
            marker=MARKER,
            front_matter=_front_matter(base_model).to_yaml(),
            base=_public_name(base_model),
            is_shipped=base_model == SHIPPED,
            is_on_hub=_is_on_hub(base_model),
            weight_name=LORA_WEIGHT_NAME_SAFE,
            config=config,
            settings=_settings(config, base_model),
            **values,
        )
    )
    path = _free_place(folder)
    with atomic_path(path) as temporary:
        temporary.write_text(str(ModelCard(text)), encoding="utf-8")
    return path


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


def _settings(config: Settings, base_model: str) -> str:
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
