"""The page of a recipe explains every setting, under its real name and with its real default."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configs.reward_token import RewardTokenConfig
from recipes.configuration import COMMAND_OPTIONS
from recipes.settings import Settings, leaf_fields, nest


@dataclass(frozen=True)
class Page:
    """A page, the settings it explains, and those without which there is no configuration."""

    name: str
    model: type[Settings]
    needed: dict[str, str]

    @property
    def path(self) -> Path:
        return Path(__file__).parents[2] / "docs" / self.name

    def rows(self) -> list[tuple[str, str, str]]:
        """Key, default and meaning of each row of the page's tables of settings."""
        return re.findall(r"^\| `([\w.]+)` \| (required|`[^`]*`) \| (.+) \|$", self.path.read_text(), re.M)


PAGES = [
    Page("filter-finetune.md", FilterFinetuneConfig, {}),
    Page("reward-token.md", RewardTokenConfig, {"train_prompts": "x"}),
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_every_setting_has_one_row_and_every_row_is_a_setting(page: Page) -> None:
    assert sorted(key for key, _, _ in page.rows()) == sorted(leaf_fields(page.model))


@every_page
def test_the_defaults_of_the_page_are_the_defaults(page: Page) -> None:
    required = {key for key, field in leaf_fields(page.model).items() if field.is_required()}
    given: dict[str, Any] = {key: ["x"] if key == "rewards" else "x" for key in required} | page.needed
    stated = {key: yaml.load(default.strip("`"), yaml.BaseLoader) for key, default, _ in page.rows()}
    defaults = {key: value for key, value in stated.items() if key not in given}
    assert page.model.model_validate(nest(page.model, defaults | given)) == page.model.model_validate(given)
    assert {key for key, default, _ in page.rows() if default == "required"} == required
    assert all(stated[key] == "null" for key in page.needed)


@every_page
def test_every_choice_and_every_option_of_the_command_is_named(page: Page) -> None:
    text, meanings = page.path.read_text(), {key: meaning for key, _, meaning in page.rows()}
    for key in ("train.lr_scheduler", "train.mixed_precision", "report_to"):
        choices = re.findall(r"'(\w+)'", str(leaf_fields(page.model)[key].annotation))
        assert [choice for choice in choices if f"`{choice}`" not in meanings[key]] == []
    assert [option for option in COMMAND_OPTIONS if f"| `--{option}` |" not in text] == []


@every_page
def test_the_links_of_the_page_lead_somewhere(page: Page) -> None:
    text = page.path.read_text()
    titles = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall("^#+ (.+)", text, re.M)]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        found = link[1:] in titles if link.startswith("#") else (page.path.parent / link).exists()
        assert found, f"{link} leads nowhere"
