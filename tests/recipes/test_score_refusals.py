"""Images that a reward cannot take, prompts that say nothing: who is named, and what goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.recipes.own_red import REWARD, Said


def test_a_strip_of_20000_pixels_is_scored(score: Callable[..., Said], place: Path) -> None:
    """Resized as a whole it would be 40,000 wide, by a matrix of 6 GB."""
    Image.new("RGB", (20_000, 32), "red").save(place / "strip.png")
    assert score("--prompt", "a red circle", images=("strip.png",), rewards=("sandbox-hps",))[0] == 0


FUSSY = """
import torch
from rewards.base import Reward
class Fussy(Reward):
    dimensions = ("overall",)
    differentiable = True
    def preprocess(self, image):
        return image
    def __call__(self, images, prompts):
        if any(image.shape[1] in {heights} for image in images):
            raise ValueError("a height that I do not like")
        return torch.stack([image[0].mean() for image in images])[:, None]
"""


@pytest.mark.parametrize("batch_size", ["2", "64"])
def test_an_image_that_a_reward_refuses_is_found_in_its_batch(
    score: Callable[..., Said], place: Path, batch_size: str
) -> None:
    name = f"fussy_{batch_size}"
    (place / f"{name}.py").write_text(FUSSY.replace("{heights}", "(9, 12, 13)"))
    code, _, err = score("--batch_size", batch_size, rewards=(f"{name}:Fussy",))
    assert code == 0
    for index in (1, 4, 5):
        assert f"not scored: pictures/{index}.png: {name}:Fussy: a height that I do not like" in err
    table = pq.read_table(place / "pictures/scores/all.parquet")[f"{name}:Fussy overall"].to_pylist()
    assert [value is None for value in table] == [False, True, False, False, True, True]


def test_a_reward_that_refuses_all_images_has_its_own_error(score: Callable[..., Said], place: Path) -> None:
    (place / "fussy_all.py").write_text(FUSSY.replace("{heights}", "range(99)"))
    code, _, err = score(rewards=("fussy_all:Fussy",))
    assert code == 1
    assert "error: a height that I do not like" in err
    assert "not scored" not in err


def test_an_image_that_cannot_be_preprocessed_is_named(score: Callable[..., Said], place: Path) -> None:
    (place / "own_picky.py").write_text(
        REWARD.replace("Red", "Picky").replace(
            "return image.mean", "if image.shape[1] == 9: raise ValueError('nine')\n        return image.mean"
        )
    )
    code, _, err = score(rewards=("own_picky:Picky",))
    assert code == 0
    assert "not scored: pictures/1.png: nine" in err


def test_an_empty_prompt_is_one(score: Callable[..., Said]) -> None:
    code, out, _ = score("--prompt", "", "--format", "json")
    assert code == 0
    assert {image["text"] for image in json.loads(out)["images"]} == {""}
