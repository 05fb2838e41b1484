"""Rewards on CLIPs give the numbers of their authors' own code, on weights made by a rule."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rewards.clip import ImageConfig
from rewards.tokens import Tokenize, openai_tokenizer, transformers_tokenizer
from tests.rewards import golden
from tests.rewards.clip_rewards import ClipReward, golden_reward

MEAN, STD = list(ImageConfig(224).mean), list(ImageConfig(224).std)
BICUBIC = transforms.InterpolationMode.BICUBIC

# Run, column of its rows, arguments of the class, tolerance of the score.
Case = tuple[str, str, dict[str, Any], float]
CASES: dict[str, Case] = {
    "hps-v1": ("hpsv1", "score", {}, 2e-6),
    "hps-v2": ("hpsv2", "antialias_off", {"antialias": False}, 2e-6),
    "hps-v2 antialias": ("hpsv2", "antialias_on", {"antialias": True}, 2e-6),
    "pickscore": ("pickscore", "score", {}, 1e-4),
    "aesthetic": ("laion", "score", {}, 2e-6),
}


def _picture(index: int) -> Image.Image:
    return Image.open(next((golden.FOLDER / "images").glob(f"{index}_*.png")))


def _openai_pixels(index: int) -> Tensor:
    resize = transforms.Compose([transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)])
    return functional.normalize(functional.to_tensor(resize(_picture(index)).convert("RGB")), MEAN, STD)


def _hps_v2_pixels(index: int, antialias: bool) -> Tensor:
    image = functional.to_tensor(_picture(index).convert("RGB"))
    scale = 224 / max(image.shape[-2:])
    if scale != 1:
        size = [round(side * scale) for side in image.shape[-2:]]
        image = functional.resize(image, size, BICUBIC, antialias=antialias)
    height, width = image.shape[-2:]
    top, left = (224 - height) // 2, (224 - width) // 2
    border = [left, top, 224 - width - left, 224 - height - top]
    return functional.normalize(functional.pad(image, border), MEAN, STD)


def _transformers_pixels(index: int) -> Tensor:
    # Transformers 5 would put an alpha channel on white, where the authors' version dropped it.
    return CLIPImageProcessorPil()(_picture(index).convert("RGB"), return_tensors="pt")["pixel_values"][0]


@cache
def official_pixels(name: str) -> Tensor:
    """The eight pictures as the authors' preprocessing gives them to the network."""
    make: dict[str, Callable[[int], Tensor]] = {
        "hps-v2": lambda index: _hps_v2_pixels(index, antialias=False),
        "hps-v2 antialias": lambda index: _hps_v2_pixels(index, antialias=True),
        "pickscore": _transformers_pixels,
        "mps": _transformers_pixels,
    }
    return torch.stack([make.get(name, _openai_pixels)(index) for index in range(8)])


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClipReward]:
    """The rewards with the rule's weights."""
    folder = tmp_path_factory.mktemp("rewards")
    return {name: golden_reward(run, folder / name, **options) for name, (run, _, options, _) in CASES.items()}


def expected_scores(rows: Sequence[dict[str, Any]], column: str) -> Tensor:
    """The golden scores, in the order of the rows."""
    return torch.tensor([row[column] for row in rows])


def _pairs(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[str]]:
    return [row["image"] for row in rows], [golden.prompts()[row.get("prompt", 0)] for row in rows]


@pytest.mark.parametrize(
    ("run", "tokenize"),
    [("hpsv1", openai_tokenizer(77)), ("pickscore", transformers_tokenizer(77)), ("mps", transformers_tokenizer(77))],
)
def test_tokens_are_the_authors(run: str, tokenize: Tokenize) -> None:
    ids = golden.run(f"{run}_small")["prompt_ids"]
    padding = 0 if run == "hpsv1" else 49407
    assert tokenize(golden.prompts()).tolist() == [row + [padding] * (77 - len(row)) for row in ids]


def test_tokens_of_hps_v2_are_open_clips(rewards: dict[str, ClipReward]) -> None:
    ids = golden.run("hpsv2_small")["prompt_ids"]
    assert rewards["hps-v2"].network.tokenize(golden.prompts()).tolist() == ids
    assert rewards["hps-v1"].network.tokenize(golden.prompts()).tolist() != ids


@pytest.mark.parametrize("name", ["hps-v1", "hps-v2", "hps-v2 antialias", "pickscore"])
def test_the_official_pixels_are_those_of_the_goldens(name: str) -> None:
    run = golden.read("golden_debug.json")[f"{CASES[name][0]}_small"]
    debug = run["debug_antialias_on" if "antialias" in name else "debug"]
    for index, pixels in enumerate(official_pixels(name)):
        golden.assert_sampled(pixels[None], debug[f"image{index}"]["pixels"], atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_scores_on_the_official_pixels(name: str, rewards: dict[str, ClipReward]) -> None:
    run, column, _, tolerance = CASES[name]
    rows = golden.run(f"{run}_small")["pairs"]
    images, prompts = _pairs(rows)
    scores = rewards[name].score_pixels(official_pixels(name)[images], prompts)[:, 0]
    expected = expected_scores(rows, column)
    assert expected.std() > 1000 * tolerance
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "hps-v2 antialias"])
def test_scores_that_see_a_wrong_epsilon(name: str, tmp_path: Path) -> None:
    run, column, options, tolerance = CASES[name]
    content = golden.run(f"{run}_small_eps")
    reward = golden_reward(run, tmp_path, content["gains"], **options)
    images, prompts = _pairs(content["pairs"])
    scores = reward.score_pixels(official_pixels(name)[images], prompts)[:, 0]
    torch.testing.assert_close(scores, expected_scores(content["pairs"], column), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_scores_through_our_preprocessing(name: str, rewards: dict[str, ClipReward]) -> None:
    run, column, _, _ = CASES[name]
    rows = [row for row in golden.run(f"{run}_small")["pairs"] if row.get("prompt", 1) == 1]
    # The sixth has an alpha channel: OpenAI's pipeline resizes it, ours gets what the caller made of it.
    rows = [row for row in rows if row["image"] != 6 or run in ("hpsv2", "pickscore")]
    images, prompts = _pairs(rows)
    scores = rewards[name]([golden.image(index) for index in images], prompts)[:, 0]
    expected = expected_scores(rows, column)
    assert (scores - expected).abs().max() / expected.std() < (1e-3 if run == "hpsv2" else 5e-3)


def test_the_gradient_of_hps_v2(rewards: dict[str, ClipReward]) -> None:
    expected = golden.read("golden.json")["pixel_gradients"]["hpsv2"]
    assert_gradient(rewards["hps-v2"], expected)


def assert_gradient(reward: ClipReward, expected: dict[str, Any]) -> None:
    """The score's gradient at given pixels is the authors' to 1e-4 of its length."""
    pixels = golden.gradient_input(224).requires_grad_()
    score = reward.score_pixels(pixels, [golden.prompts()[expected["prompt"]]])[0, 0]
    (gradient,) = torch.autograd.grad(score, pixels)
    torch.testing.assert_close(score.item(), expected["score"], rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(gradient.norm().item(), expected["grad_l2"], rtol=1e-4, atol=0.0)
    values = torch.tensor(expected["grad"]["values"])
    found = gradient.flatten()[expected["grad"]["flat_index"]]
    torch.testing.assert_close(found, values, rtol=0, atol=1e-4 * values.norm().item())


def test_an_oblong_image_with_a_longer_side_of_224_is_padded(rewards: dict[str, ClipReward]) -> None:
    image = torch.rand(3, 224, 100, generator=torch.Generator().manual_seed(0))
    pixels = rewards["hps-v2"].preprocess(image)
    black = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(pixels[:, 0, [0, 61, 162, 223]], black[:, None].expand(3, 4))
    assert (pixels[:, :, 62:162] - black[:, None, None]).abs().amin(0).max() > 1


def test_the_aesthetic_score_does_not_look_at_the_prompt(rewards: dict[str, ClipReward]) -> None:
    image = golden.image(1)
    assert len(rewards["aesthetic"]([image, image], ["", "a cat"]).unique()) == 1
