"""The CLIP gradient is the gradient: finite differences say so, whatever the caller has switched on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewards.base import Critic
from rewards.clip import ClipScore
from rewards.clip_gradient import ClipGradient
from rewards.image import _rounding_error as rounding_error  # pyright: ignore[reportPrivateUsage]
from rewards.load import load_reward
from rewards.rahf.network import HEATMAPS
from tests.rewards.tiny_clip import save_tiny_clip

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "two blue, squares", "a red circle")
SIZES = ((40, 48), (32, 32), (64, 37))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP that sees the middle square."""
    return save_tiny_clip(tmp_path_factory.mktemp("tiny") / "clip")


def _images(sizes: tuple[tuple[int, int], ...] = SIZES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.3 + 0.4 * torch.rand(3, *size, generator=generator, dtype=dtype) for size in sizes]


def _by_hand(folder: Path, image: Tensor, prompt: str) -> Tensor:
    """The map of one image by the definition."""
    leaf = image.clone().requires_grad_()
    ClipScore(folder, CPU, torch.float64)([leaf], [prompt]).backward()
    assert leaf.grad is not None
    strength = torch.maximum(torch.maximum(*leaf.grad[:2].abs()), leaf.grad[2].abs())
    return strength / strength.max()


def test_a_map_is_the_gradient_by_its_definition(tiny: Path) -> None:
    critique = ClipGradient(tiny, CPU, torch.float64).critique(images := _images(), PROMPTS)
    for index, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        for name in HEATMAPS:
            found = critique.heatmaps[name][index]
            torch.testing.assert_close(found, _by_hand(tiny, image, prompt), atol=1e-10, rtol=0)
            assert (found.shape, found.min() >= 0, found.max()) == (image.shape[1:], True, 1)


def test_a_map_is_that_of_finite_differences(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critic, image = ClipGradient(tiny, CPU, torch.float64), _images(((32, 32),))[0]
    found = torch.as_tensor(critic.critique([image], PROMPTS[:1]).heatmaps["misalignment"])[0]
    # The gradient passes straight through the rounding to 8 bits: its error is held fast while a pixel moves.
    monkeypatch.setattr("rewards.image._rounding_error", lambda levels: rounding_error(image * 255))
    places = [divmod(int(found.argmax()), 32), (3, 5), (16, 16), (31, 0)]
    slopes = torch.stack([_slope(critic, image, *place) for place in places])
    expected = torch.stack([found[place] for place in places])
    torch.testing.assert_close(slopes / slopes[0], expected, atol=1e-5, rtol=1e-4)


def _slope(critic: ClipGradient, image: Tensor, row: int, column: int) -> Tensor:
    """The greatest magnitude over the channels of the central difference at a pixel."""
    step, slopes = 1e-5, []
    for channel in range(3):
        moved = torch.zeros_like(image)
        moved[channel, row, column] = step
        ahead, behind = critic([image + moved, image - moved], [PROMPTS[0]] * 2)
        slopes.append((ahead - behind).abs()[0] / (2 * step))
    return torch.stack(slopes).max()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_need_not_have_gradients_on(tiny: Path, mode: type[torch.no_grad]) -> None:
    critic, images = ClipGradient(tiny, CPU, torch.float64), _images()
    expected = critic.critique(images, PROMPTS)
    with mode():
        found = critic.critique([image.clone() for image in images], PROMPTS)
        scores = critic(images, PROMPTS)
    assert not found.scores.requires_grad
    assert torch.equal(found.scores, scores)
    for one, other in zip(found.heatmaps["misalignment"], expected.heatmaps["misalignment"], strict=True):
        assert torch.equal(one, other)


def test_no_gradient_stays_behind(tiny: Path) -> None:
    critic, images = ClipGradient(tiny, CPU, torch.float64), [image.requires_grad_() for image in _images()]
    critique = critic.critique(images, PROMPTS)
    assert all(parameter.grad is None for parameter in critic.network.model.parameters())
    assert all(image.grad is None for image in images)
    assert not any(one.requires_grad for one in critique.heatmaps["misalignment"])


@pytest.mark.parametrize("stacked", [False, True])
def test_gradients_flow_through_the_scores_of_a_critique(tiny: Path, stacked: bool) -> None:
    critic = ClipGradient(tiny, CPU, torch.float64)
    leaves = [image.requires_grad_() for image in _images(((40, 48),) * 3)]
    given = torch.stack(leaves) if stacked else leaves
    found = torch.autograd.grad(critic.critique(given, PROMPTS).scores.sum(), leaves)
    expected = torch.autograd.grad(ClipScore(tiny, CPU, torch.float64)(leaves, PROMPTS).sum(), leaves)
    assert all(map(torch.equal, found, expected))


def test_scores_are_those_of_the_clip(tiny: Path) -> None:
    critic, images = ClipGradient(tiny, CPU), _images(dtype=torch.float32)
    expected = ClipScore(tiny, CPU)(images, PROMPTS)
    assert torch.equal(critic(images, PROMPTS), expected)
    critique = critic.critique(images, PROMPTS)
    assert torch.equal(critique.scores, expected)
    assert critique.words == [["a", "red", "circle"], ["two", "blue", "squares"], ["a", "red", "circle"]]
    assert critique.misaligned == [[False] * 3] * 3


def test_maps_of_one_size_are_one_tensor(tiny: Path) -> None:
    critique = ClipGradient(tiny, CPU).critique(torch.rand(3, 3, 20, 30), PROMPTS)
    assert [torch.as_tensor(maps).shape for maps in critique.heatmaps.values()] == [(3, 20, 30)] * 2


def test_what_is_cut_off_does_not_move_the_score(tiny: Path) -> None:
    heat = torch.as_tensor(ClipGradient(tiny, CPU).critique([torch.rand(3, 32, 64)], PROMPTS[:1]).heatmaps[HEATMAPS[0]])
    assert not heat[0, :, :16].any() and not heat[0, :, 48:].any() and heat[0, :, 16:48].any()


def test_without_a_gradient_the_map_is_empty(tiny: Path) -> None:
    critic = ClipGradient(tiny, CPU)
    critic.network.model.get_parameter("visual.conv1.weight").zero_()  # it sees nothing
    critique = critic.critique(_images(dtype=torch.float32), PROMPTS)
    assert not any(one.any() for one in critique.heatmaps["implausibility"])


def test_half_precision_maps_are_promoted(tiny: Path) -> None:
    images = _images(dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        maps = ClipGradient(tiny, CPU, dtype).critique([image.to(dtype) for image in images], PROMPTS).heatmaps
        assert [(one.dtype, one.max()) for one in maps["misalignment"]] == [(torch.float32, 1)] * 3


def test_the_card_is_a_critic() -> None:
    critic = load_reward("clip-gradient", CPU)
    assert isinstance(critic, Critic)
    critique = critic.critique([torch.rand(3, 64, 64)], ["a red circle"])
    assert torch.as_tensor(critique.heatmaps["misalignment"]).max() == 1
