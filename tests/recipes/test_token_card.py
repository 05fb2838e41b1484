"""The model card of a reward-token run: its words, its use, its numbers, and nothing of anybody's disk."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from align.evaluate import Row
from recipes.card_file import MARKER
from recipes.configs.reward_token import RewardTokenConfig
from recipes.token_arms import BASE, TUNED, Arm
from recipes.token_card import write_token_card
from recipes.token_choice import Choice, Group
from recipes.token_judge import Comparison
from tests.recipes.test_model_card import SETTINGS

ROW = Row("sandbox.gold:Gold", "overall", 512, 0.773, 0.801, 0.029, 0.016, 0.042, 0.6)
LEVELS: dict[str, Any] = {"level_identifiers": ["worst ", "best "]}
SEVERAL: dict[str, Any] = {"dimension_identifiers": ["pale =sandbox-rahf.plausibility", "dull =my_reward:Dull"]}


GROUPS = [
    Group("preferred", "", "sandbox-hps", [1, 2, 3], [0.6, 0.7, 0.8], 3),
    Group("non-preferred", "Weird | image. ", "sandbox-hps", [4, 5], [0.6, 0.7], 4),
]


def card_of(folder: Path, choice: Choice = Choice(GROUPS, 9, 0), **changes: object) -> str:  # noqa: B008  # frozen
    """The text of a card."""
    config = RewardTokenConfig.model_validate(SETTINGS | changes)
    tuned = Arm(TUNED, "tuned, away from the token", "lora")
    return write_token_card(folder, config, choice, [Comparison(tuned, BASE, [ROW])]).read_text()


def call_of(text: str) -> str:
    """The call of the pipeline, on one line."""
    found = re.search(r"image = pipeline\((.*?)\)\.images", text, re.S)
    assert found
    return " ".join(found[1].split())


def test_the_hub_reads_the_card_and_finds_words_numbers_and_licences(tmp_path: Path) -> None:
    text = card_of(tmp_path, pretrained_model_name_or_path="owner/name")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data["base_model"] == "owner/name" and card.text.lstrip().startswith(MARKER)
    assert r'| "Weird \| image. " | 2: non-preferred, by sandbox-hps |' in text
    assert "trained on 3 preferred, 2 of 4 non-preferred, of 9 prompts" in text
    assert "| tuned, away from the token | base model | 0.773 | 0.801 | +0.029 | +0.016 to +0.042 | 60% |" in text
    assert "- sandbox-hps, a reward: Apache-2.0" in text and "sandbox.gold:Gold did not choose any" in text
    assert 'negative_prompt="Weird image. ",' in call_of(text) and call_of(text).startswith('"a prompt"')


def test_without_another_judge_the_card_says_so(tmp_path: Path) -> None:
    said = "No other reward judged the result"
    assert said not in card_of(tmp_path)
    chosen = Choice([Group("failing Gold", "pale ", "sandbox.gold:Gold", [1], [0.9], 1)], 1, 0)
    assert said in card_of(tmp_path, choice=chosen, **SEVERAL)


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        (LEVELS, '"best a prompt", num_inference_steps=25, guidance_scale=7.5, negative_prompt="worst ",'),
        (SEVERAL, 'negative_prompt="pale ", # a pipeline takes one negative prompt; align generate takes all'),
        ({"embedding": {"max_train_steps": 4}}, 'negative_prompt="<weird-image> ",'),
    ],
)
def test_the_code_asks_for_what_the_run_asked_for(changes: dict[str, Any], call: str, tmp_path: Path) -> None:
    text = card_of(tmp_path, **changes)
    assert call in call_of(text)
    assert ("load_textual_inversion" in text) == ("embedding" in changes) == ("learned_embeds" in text)


def test_the_card_gives_no_place_away_and_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    model = "/home/somebody/sd"
    card_of(tmp_path, pretrained_model_name_or_path=model)
    assert (tmp_path / "README.md").read_text() == "mine"
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert "somebody" not in text
    found = re.search(r"```yaml\n(.*?)```", text, re.S)
    assert found and yaml.safe_load(found[1])["output_dir"] == "mine" and "`align reward-token`" in text
