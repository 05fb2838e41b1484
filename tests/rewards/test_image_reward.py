"""ImageReward gives its authors' numbers, keeps the contract, and refuses what does not fit."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rewards.convert.image_reward import convert_image_reward
from rewards.convert.layouts import Parts
from rewards.image_reward import MEAN, SD, ImageReward, ImageRewardConfig, ImageRewardNetwork
from rewards.weights import CONFIG, WEIGHTS, write_network
from tests.rewards import golden
from tests.rewards.tokenizers_for_tests import golden_bert, tiny_bert
from tests.test_rewards import CHECKS, Case

CPU = torch.device("cpu")
SMALL = Parts(vision_heads=3, text_heads=2)
TINY = ImageRewardConfig(
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_hidden=32,
    vocabulary=80,
    positions=35,
)
CASE = Case(lambda folder, dtype: ImageReward(folder, CPU, dtype))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    """The golden network, through our files."""
    return _small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    """The golden network with activations so small that every epsilon counts."""
    return _small(tmp_path_factory.mktemp("fragile"), golden.run("imagereward_small_eps")["gains"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network for the contract."""
    folder = tmp_path_factory.mktemp("tiny")
    network = ImageRewardNetwork(TINY)
    golden.randomise(network)
    write_network(folder, {WEIGHTS: network.state_dict()}, {CONFIG: asdict(TINY)})
    tiny_bert().save(str(folder / "tokenizer.json"))
    return folder


def _small(folder: Path, gains: list[list[object]] | None = None) -> ImageReward:
    write_network(folder, *convert_image_reward(golden.checkpoint("imagereward_small", gains), SMALL))
    golden_bert().save(str(folder / "tokenizer.json"))
    return ImageReward(folder, CPU)


def _image(index: int) -> Tensor:
    """As the authors' code sees it: it shrinks a picture with its transparency, and drops that afterwards."""
    path = next((golden.FOLDER / "images").glob(f"{index}_*.png"))
    with Image.open(path) as picture:
        if picture.mode != "RGBA":
            return golden.image(index)
        small = picture.resize((224, 224), Image.Resampling.BICUBIC).convert("RGB")
        return torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255


def _error(reward: ImageReward, name: str) -> float:
    pairs = golden.run(name)["pairs"]
    images = [_image(pair["image"]) for pair in pairs]
    scores = reward(images, [golden.prompts()[pair["prompt"]] for pair in pairs])
    return (scores[:, 0] - torch.tensor([pair["score"] for pair in pairs])).abs().max().item()


def test_prompts_have_the_authors_tokens(small: ImageReward) -> None:
    ids, mask = small.tokenize(golden.prompts())
    assert ids.tolist() == golden.run("imagereward_small")["prompt_ids"]
    assert torch.equal(mask, ids != 0)


@pytest.mark.weights
def test_the_published_tokenizer_gives_the_authors_tokens() -> None:
    reward = ImageReward(Path(__file__).parents[2] / "rewards/published/image-reward", CPU)
    assert reward.tokenize(golden.prompts())[0].tolist() == golden.run("imagereward_small")["prompt_ids"]


def test_special_words_in_a_prompt_have_the_appended_ids(small: ImageReward) -> None:
    ids, _ = small.tokenize(["[DEC] a cat [ENC]"])
    assert ids[0, :6].tolist() == [101, 30522, 1037, 4937, 30523, 102]


@pytest.mark.parametrize("index", range(8))
def test_pixels_are_the_authors(small: ImageReward, index: int) -> None:
    sample = golden.read("golden_debug.json")["imagereward_small"]["debug"][f"image{index}"]["pixels"]
    golden.assert_sampled(small.preprocess(_image(index))[None], sample, atol=1e-6)


def test_scores_are_the_authors(small: ImageReward) -> None:
    assert _error(small, "imagereward_small") < 5e-6


def test_the_ranking_is_the_authors(small: ImageReward) -> None:
    expected = golden.run("imagereward_small")["inference_rank_prompt1"]
    scores = small([golden.image(index) for index in expected["images"]], [golden.prompts()[1]] * 4)[:, 0]
    assert (1 + (-scores).argsort().argsort()).tolist() == expected["ranks"]


def test_every_epsilon_is_the_authors(fragile: ImageReward) -> None:
    assert _error(fragile, "imagereward_small_eps") < 5e-6


@pytest.mark.parametrize("part", ["vision", "text"])
def test_another_epsilon_would_show(fragile: ImageReward, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in getattr(fragile.network, part).modules():
        if isinstance(module, nn.LayerNorm):
            monkeypatch.setattr(module, "eps", 1e-5)
    assert _error(fragile, "imagereward_small_eps") > 1e-3


def test_gradients_are_the_authors(small: ImageReward) -> None:
    expected = golden.read("golden.json")["pixel_gradients"]["imagereward"]
    pixels = golden.gradient_input(224).requires_grad_()
    score = (small.network(pixels, *small.tokenize([golden.prompts()[expected["prompt"]]])) - MEAN) / SD
    (gradient,) = torch.autograd.grad(score.sum(), pixels)
    torch.testing.assert_close(score.item(), expected["score"], atol=5e-6, rtol=0)
    torch.testing.assert_close(gradient.norm().item(), expected["grad_l2"], atol=0, rtol=1e-4)
    golden.assert_sampled(gradient, expected["grad"], atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check: Callable[[Case, Path], None], tiny: Path) -> None:
    check(CASE, tiny)


def test_a_prompt_matters(tiny: Path) -> None:
    reward, image = ImageReward(tiny, CPU), CASE.images()[0]
    scores = reward([image, image], ["a red circle", "blue squares"])[:, 0]
    assert (scores[0] - scores[1]).abs() > 1e-3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "must be a JSON object"),
        ("config.json", json.dumps({"width": 3}), "fields of ImageRewardConfig.*width"),
        ("config.json", json.dumps({"image_size": 16}), "does not hold the weights"),
        ("model.safetensors", None, "weights are read from safetensors only"),
        ("model.safetensors", "junk", "does not hold the weights"),
        ("tokenizer.json", None, "tokenizer.json does not exist, and the network needs it"),
        ("tokenizer.json", "junk", "not a file of the tokenizers library"),
    ],
)
def test_a_damaged_folder_is_refused(tiny: Path, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageReward(tmp_path, CPU)


def test_a_tokenizer_of_another_network_is_refused(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    golden_bert().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has 30524 tokens, the network knows 80"):
        ImageReward(tmp_path, CPU)


def test_a_smaller_tokenizer_of_another_network_is_refused(tiny: Path, tmp_path: Path) -> None:
    """As of bert-base-cased: its tokens are fewer, so the two that are added would have other ids."""
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    del words[max(words, key=words.get)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is of another network: \[DEC\] is token 77 in it, and 78 here"):
        ImageReward(tmp_path, CPU)
