"""The engine of scoring: batches that fit into memory, prompts that are read once, images as a reward wants them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.image_texts import Captions
from recipes.images import find_items
from recipes.scoring import Engine
from rewards.base import Images, PixelReward, Reward
from rewards.clip import ClipScore
from rewards.load import load_reward

CPU = torch.device("cpu")


@pytest.mark.usefixtures("place")
def test_each_prompt_is_encoded_once() -> None:
    reward, read = load_reward("sandbox-clip", CPU), list[str]()
    assert isinstance(reward, ClipScore)
    tokenize = reward.network.tokenize
    object.__setattr__(reward.network, "tokenize", lambda prompts: read.extend(prompts) or tokenize(prompts))
    engine = Engine("clip", reward, CPU, batch_size=1)
    items = find_items(["pictures"], Captions())
    scores = {key: value for _, found in engine.scores([[item] for item in items]) for key, value in found.items()}
    assert read == ["a red circle", "a <b>square</b>"]
    alone = [reward([item.image()], [item.text]).item() for item in items]
    assert [scores[item.key][0] for item in items] == pytest.approx(alone, abs=1e-6)


class Hungry(PixelReward):
    """Runs out of memory above so many images."""

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.batches = most, error, list[int]()

    def preprocess(self, image: Tensor) -> Tensor:
        return image.mean((1, 2), keepdim=True)

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        self.batches.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error
        return pixels[:, 0, 0]


NO_MEMORY = (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def _engine(reward: Reward, **options: Any) -> tuple[Engine, list[Any]]:
    return Engine("hungry", reward, CPU, **options), find_items(["pictures"], Captions())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("error", NO_MEMORY, ids=["device", "cpu"])
def test_batches_are_halved_until_they_fit(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    reward = Hungry(2, error)
    engine, items = _engine(reward)
    ((batch, scores),) = engine.scores([items])
    assert batch == items
    assert [scores[item.key][0] for item in items] == pytest.approx([20 * (i + 1) / 255 for i in range(6)])
    assert reward.batches == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "hungry: no memory for 6 images at once; going on with 3." in capsys.readouterr().err
    assert list(engine.scores([items]))[0][1] == scores
    assert set(reward.batches[8:]) == {1}  # what fits is remembered


@pytest.mark.usefixtures("place")
def test_a_batch_size_of_the_users_own_is_kept() -> None:
    engine, items = _engine(Hungry(2, NO_MEMORY[0]), batch_size=4)
    with pytest.raises(ValueError, match=r"hungry has no memory for 4 images at once on cpu. Give a smaller"):
        list(engine.scores([items[:4]]))


@pytest.mark.usefixtures("place")
def test_an_error_of_another_kind_is_not_taken_for_missing_memory() -> None:
    engine, items = _engine(Hungry(2, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(engine.scores([items]))


def test_images_of_one_size_come_as_one_tensor(place: Path) -> None:
    seen = list[Images]()

    class Plain(Reward):
        dimensions = ("overall",)
        differentiable = False

        def preprocess(self, image: Tensor) -> Tensor:
            return image

        def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 1)

    del place
    engine, items = _engine(Plain())
    list(engine.scores([items, items[:1]]))
    assert isinstance(seen[0], list)
    assert isinstance(seen[1], Tensor)
    assert math.prod(seen[1].shape) == 3 * 8 * 10
