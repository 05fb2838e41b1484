"""What it means to be a reward. A new reward is one more case here, and earns its place by passing every check."""

import pkgutil
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor

from rewards.aesthetic import Aesthetic
from rewards.base import Images, Reward
from rewards.cards import load_cards
from rewards.clip import ClipScore
from rewards.clip_gradient import ClipGradient
from rewards.combine import Dimension, Normalised, Weighted
from rewards.hps import HPS
from rewards.hps_v2 import HPSv2
from rewards.image import _rounding_error as rounding_error  # pyright: ignore[reportPrivateUsage]
from rewards.mps import MPS
from rewards.pickscore import PickScore
from rewards.resnet import ResnetCritic
from sandbox.gold import Gold
from tests.rewards.clip_rewards import save_tiny_rewards
from tests.rewards.tiny_clip import save_tiny_clip
from tests.rewards.tiny_resnet import save_tiny_resnet

CPU = torch.device("cpu")
RED_STAR = "a large red star on a white background"
BLUE_CIRCLES = "three small blue circles on a grey background"


@dataclass(frozen=True)
class Case:
    """A reward to test.

    Attributes:
        build: Makes it, from a folder of tiny networks (see the fixture), with its parameters in a precision.
            (Without parameters it computes in the precision of the images.)
        prompts: Three that it understands, the first and the last alike.
        sizes: Height and width of three images that it understands.
    """

    build: Callable[[Path, torch.dtype], Reward]
    prompts: tuple[str, str, str] = ("a red circle", "two blue squares", "a red circle")
    sizes: tuple[tuple[int, int], ...] = ((40, 48), (32, 32), (64, 37))

    def images(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Pictures away from black and white, where clipping would bend a finite difference."""
        generator = torch.Generator().manual_seed(0)
        return [0.3 + 0.4 * torch.rand(3, *size, generator=generator, dtype=dtype) for size in self.sizes]


@final
class Both(Reward):
    """Two dimensions, for the wrappers."""

    dimensions = ("clip", "warmth")
    differentiable = True

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.clip = ClipScore(folder / "clip", CPU, dtype)

    def preprocess(self, image: Tensor) -> Tensor:
        return self.clip.preprocess(image)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        warmth = torch.stack([image[0].mean() - image[2].mean() for image in images])
        return torch.stack([self.clip(images, prompts)[:, 0], warmth], dim=1)


def _weighted(folder: Path, dtype: torch.dtype) -> Reward:
    return Weighted([(ClipScore(folder / "clip", CPU, dtype), 2.0), (HPS(folder / "hps", CPU, dtype), -0.5)])


def _from_the_docs(folder: Path, dtype: torch.dtype) -> Reward:
    page = Path(__file__).parents[1] / "docs/add-a-reward.md"
    scope: dict[str, type[Reward]] = {}
    exec(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0], scope)
    return scope["MyReward"]()


def _card(name: str) -> Case:
    card = load_cards()[name]

    def build(_: Path, dtype: torch.dtype) -> Reward:
        if not card.path.exists():
            pytest.skip(f"the weights of {name} are not built")
        return pkgutil.resolve_name(card.reward)(card.path, device=CPU, dtype=dtype, **card.args)

    return Case(build)


CASES = {
    "ClipScore": Case(lambda folder, dtype: ClipScore(folder / "clip", CPU, dtype)),
    "HPS": Case(lambda folder, dtype: HPS(folder / "hps", CPU, dtype)),
    "HPSv2": Case(lambda folder, dtype: HPSv2(folder / "hps", CPU, dtype)),
    "HPSv2 antialias": Case(lambda folder, dtype: HPSv2(folder / "hps", CPU, dtype, antialias=True)),
    "PickScore": Case(lambda folder, dtype: PickScore(folder / "full-vocabulary", CPU, dtype)),
    "Aesthetic": Case(lambda folder, dtype: Aesthetic(folder / "aesthetic", CPU, dtype)),
    "MPS": Case(lambda folder, dtype: MPS(folder / "mps", CPU, dtype)),
    "ClipGradient": Case(lambda folder, dtype: ClipGradient(folder / "clip", CPU, dtype)),
    "ResnetCritic": Case(lambda folder, dtype: ResnetCritic(folder / "resnet", CPU, dtype)),
    "Dimension": Case(lambda folder, dtype: Dimension(Both(folder, dtype), "warmth")),
    "Normalised": Case(lambda folder, dtype: Normalised(Both(folder, dtype), mean=[0.2, 0.1], sd=[0.5, 0.3])),
    "Weighted": Case(_weighted),
    "docs": Case(_from_the_docs),
    "Gold": Case(lambda folder, dtype: Gold(CPU), (RED_STAR, BLUE_CIRCLES, RED_STAR), ((64, 64),) * 3),
    **{name: _card(name) for name in load_cards()},
}
NAMES = [
    pytest.param(name, marks=pytest.mark.weights) if name in load_cards() and load_cards()[name].source else name
    for name in CASES
]


def scores_have_the_promised_shape_and_precision(case: Case, folder: Path) -> None:
    reward = case.build(folder, torch.float32)
    scores = reward(case.images(), case.prompts)
    assert len(set(reward.dimensions)) == len(reward.dimensions) > 0
    assert (scores.shape, scores.dtype) == ((3, len(reward.dimensions)), torch.float32)
    assert scores.isfinite().all()


def half_precision_is_promoted(case: Case, folder: Path) -> None:
    expected = case.build(folder, torch.float32)(case.images(), case.prompts)
    for dtype in (torch.float16, torch.bfloat16):
        scores = case.build(folder, dtype)(case.images(), case.prompts)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected, atol=0.05, rtol=0.05)


def scores_repeat_exactly(case: Case, folder: Path) -> None:
    reward = case.build(folder, torch.float32)
    first = reward(case.images(), case.prompts)
    assert torch.equal(first, reward(case.images(), case.prompts))
    assert torch.equal(first, case.build(folder, torch.float32)(case.images(), case.prompts))


def a_score_does_not_depend_on_its_batch(case: Case, folder: Path) -> None:
    reward, images = case.build(folder, torch.float64), case.images(torch.float64)
    together = reward(images, case.prompts)
    alone = torch.cat([reward([image], [prompt]) for image, prompt in zip(images, case.prompts, strict=True)])
    turned = reward(images[::-1], case.prompts[::-1]).flip(0)
    tolerance = 1e-10 if together.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(together, turned, atol=tolerance, rtol=tolerance)


def a_tensor_is_a_sequence_of_images(case: Case, folder: Path) -> None:
    reward, image = case.build(folder, torch.float32), case.images()[0]
    images = [image, image.flip(-1), image.flip(-2)]
    assert torch.equal(reward(torch.stack(images), case.prompts), reward(images, case.prompts))


def the_input_is_not_written_to(case: Case, folder: Path) -> None:
    reward, images, prompts = case.build(folder, torch.float32), case.images(), list(case.prompts)
    reward(images, prompts)
    for image in images:
        reward.preprocess(image)
    assert all(map(torch.equal, images, case.images()))
    assert prompts == list(case.prompts)


def preprocess_works_in_threads(case: Case, folder: Path) -> None:
    reward, images = case.build(folder, torch.float32), case.images() * 4
    with ThreadPoolExecutor(3) as pool:
        threaded = list(pool.map(reward.preprocess, images))
    assert all(torch.equal(one, reward.preprocess(image)) for one, image in zip(threaded, images, strict=True))


def what_is_prepared_ahead_scores_the_same(case: Case, folder: Path) -> None:
    reward, images = case.build(folder, torch.float32), case.images()
    with ThreadPoolExecutor(3) as pool:
        prepared = list(pool.map(reward.prepare, images))
    assert torch.equal(reward.score_prepared(prepared, case.prompts), reward(images, case.prompts))


def prompts_may_be_remembered(case: Case, folder: Path) -> None:
    reward, images, prompts = case.build(folder, torch.float32), case.images(), list(case.prompts)
    expected = reward(images, prompts)
    with torch.no_grad(), reward.remembering_prompts():
        first, again = reward(images[:1], prompts[:1]), reward(images, prompts)
    torch.testing.assert_close(first, expected[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(reward(images, prompts), expected)


def the_gradient_is_that_of_finite_differences(case: Case, folder: Path) -> None:
    reward = case.build(folder, torch.float64)
    if not reward.differentiable:
        assert not _total(reward, case, _leaves(case)).requires_grad
        return
    gradient = _gradient(reward, case)
    assert all(one.isfinite().all() and one.any() for one in gradient)
    # Rounding makes steps of the score. Its gradient passes straight through them: it is that of the score with the
    # rounding errors of these very pixels held fast.
    with pytest.MonkeyPatch.context() as patch:
        errors = cycle(_rounding_errors(reward, case))
        patch.setattr("rewards.image._rounding_error", lambda levels: next(errors))
        for direction in [*map(_random_direction, [gradient] * 3, range(3)), *_single_pixels(gradient)]:
            slope, expected = _slope(reward, case, direction, step=1e-7), _dot(gradient, direction)
            if not torch.isclose(slope, expected, rtol=1e-5, atol=1e-10):  # a kink of a ReLU may lie between
                slope = _slope(reward, case, direction, step=1e-8)
            torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-10)


CHECKS = (
    scores_have_the_promised_shape_and_precision,
    half_precision_is_promoted,
    scores_repeat_exactly,
    a_score_does_not_depend_on_its_batch,
    a_tensor_is_a_sequence_of_images,
    the_input_is_not_written_to,
    preprocess_works_in_threads,
    what_is_prepared_ahead_scores_the_same,
    prompts_may_be_remembered,
    the_gradient_is_that_of_finite_differences,
)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks with different weights and preprocessing: `clip`, `hps`, `resnet`, those of `save_tiny_rewards`."""
    folder = tmp_path_factory.mktemp("networks")
    save_tiny_clip(folder / "clip", seed=0)
    save_tiny_clip(folder / "hps", seed=1, resize_mode="longest")
    save_tiny_rewards(folder)
    save_tiny_resnet(folder / "resnet")
    return folder


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_reward(name: str, check: Callable[[Case, Path], None], networks: Path) -> None:
    check(CASES[name], networks)


def _leaves(case: Case) -> list[Tensor]:
    return [image.requires_grad_() for image in case.images(torch.float64)]


def _total(reward: Reward, case: Case, images: Sequence[Tensor]) -> Tensor:
    """One number that feels every image and every dimension, differently."""
    scores = reward(images, case.prompts)
    return (scores * torch.linspace(1, 2, scores.numel(), dtype=scores.dtype).view_as(scores)).sum()


def _gradient(reward: Reward, case: Case) -> list[Tensor]:
    leaves = _leaves(case)
    return list(torch.autograd.grad(_total(reward, case, leaves), leaves))


def _random_direction(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in like]


def _single_pixels(gradient: Sequence[Tensor]) -> list[list[Tensor]]:
    """Two pixels of the first image, with a gradient not below the median."""
    strength = gradient[0].abs().flatten()
    chosen = (strength >= strength.median()).nonzero()[:, 0][[0, -1]]
    rest = [torch.zeros_like(one) for one in gradient[1:]]
    return [[torch.zeros_like(strength).index_fill(0, pixel, 1.0).view_as(gradient[0]), *rest] for pixel in chosen]


def _rounding_errors(reward: Reward, case: Case) -> list[Tensor]:
    """What rounding adds to the pixels in one scoring of the images, in the order of the calls."""
    errors: list[Tensor] = []

    def recording(levels: Tensor) -> Tensor:
        errors.append(rounding_error(levels))
        return errors[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewards.image._rounding_error", recording)
        _total(reward, case, case.images(torch.float64))
    return errors


def _slope(reward: Reward, case: Case, direction: Sequence[Tensor], step: float) -> Tensor:
    """The central difference; a small step hardly meets the kinks of a network of ReLUs."""
    images = list(zip(case.images(torch.float64), direction, strict=True))
    ahead = _total(reward, case, [image + step * way for image, way in images])
    behind = _total(reward, case, [image - step * way for image, way in images])
    return (ahead - behind) / (2 * step)


def _dot(ones: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(ones, others, strict=True)]).sum()
