"""The page of a recipe explains every setting, under its real name and with its real default."""

import re
from pathlib import Path
from typing import Any

import yaml

from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configuration import COMMAND_OPTIONS
from recipes.settings import leaf_fields, nest

PAGE = Path(__file__).parents[2] / "docs" / "filter-finetune.md"
LEAVES = leaf_fields(FilterFinetuneConfig)
REQUIRED = {key for key, field in LEAVES.items() if field.is_required()}


def rows() -> list[tuple[str, str, str]]:
    """Key, default and meaning of each row of the page's tables of settings."""
    return re.findall(r"^\| `([\w.]+)` \| (required|`[^`]*`) \| (.+) \|$", PAGE.read_text(), re.M)


def test_every_setting_has_one_row_and_every_row_is_a_setting() -> None:
    assert sorted(key for key, _, _ in rows()) == sorted(LEAVES)


def test_the_defaults_of_the_page_are_the_defaults() -> None:
    given: dict[str, Any] = {key: ["x"] if key == "rewards" else "x" for key in REQUIRED}
    defaults = {key: yaml.load(default.strip("`"), yaml.BaseLoader) for key, default, _ in rows() if key not in given}
    stated = FilterFinetuneConfig.model_validate(nest(FilterFinetuneConfig, defaults | given))
    assert stated == FilterFinetuneConfig.model_validate(given)
    assert {key for key, default, _ in rows() if default == "required"} == REQUIRED


def test_every_choice_and_every_option_of_the_command_is_named() -> None:
    text = PAGE.read_text()
    meanings = {key: meaning for key, _, meaning in rows()}
    for key in ("train.lr_scheduler", "train.mixed_precision", "report_to"):
        choices = re.findall(r"'(\w+)'", str(LEAVES[key].annotation))
        assert [choice for choice in choices if f"`{choice}`" not in meanings[key]] == []
    assert [option for option in COMMAND_OPTIONS if f"| `--{option}` |" not in text] == []


def test_the_links_of_the_page_lead_somewhere() -> None:
    text = PAGE.read_text()
    titles = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall("^#+ (.+)", text, re.M)]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        found = link[1:] in titles if link.startswith("#") else (PAGE.parent / link).exists()
        assert found, f"{link} leads nowhere"
