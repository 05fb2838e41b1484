"""The builders' own pieces: neighbours of a caption, statistics of batch normalisation, what a phase trains."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from open_clip import CLIP
from scipy.special import logit
from scipy.stats import kstest, norm
from torch import Tensor

from sandbox.build.clip import SETTLING_STEPS, image_normalised, mutate, new_clip, settle, tokenize, with_other
from sandbox.build.denoiser import Conditioned, balance, new_denoiser, noise_levels, text_encoder_of
from sandbox.world import Spec, sample_spec


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return new_clip().train()


def differences(one: Spec, other: Spec) -> list[str]:
    """The facts in which two specs differ."""
    found = [name for name in ("background", "relation") if getattr(one, name) != getattr(other, name)]
    if len(one.kinds) != len(other.kinds):
        return [*found, "count"]
    pairs = set(zip(one.kinds, other.kinds, strict=True))  # counted objects are one kind
    return found + [n for n in ("size", "colour", "shape") for a, b in pairs if getattr(a, n) != getattr(b, n)]


def test_a_neighbour_differs_in_at_most_one_fact() -> None:
    generator = np.random.default_rng(0)
    specs = [sample_spec(generator, "train") for _ in range(300)]
    counts = [len(differences(spec, mutate(spec, generator))) for spec in specs]
    assert set(counts) == {0, 1}
    assert np.mean(counts) > 0.5


@pytest.mark.parametrize("attribute", ["size", "colour", "shape"])
def test_another_attribute_leaves_the_others(attribute: str) -> None:
    generator = np.random.default_rng(1)
    specs = [sample_spec(generator, "train") for _ in range(100)]
    found = [differences(spec, with_other(attribute, spec, generator)) for spec in specs]
    assert {name for names in found for name in names} == {attribute}


def test_settling_measures_the_mean_of_the_batches_and_leaves_the_weights(clip: CLIP) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand((4, 3, 64, 64), generator=generator) for _ in range(SETTLING_STEPS)]
    before = {name: value.clone() for name, value in clip.named_parameters()}
    settle(clip, lambda step: batches[step])
    visual: torch.nn.Module = clip.visual
    first = visual.get_submodule("conv1")(image_normalised(torch.cat(batches)))
    measured = visual.get_buffer("bn1.running_mean")
    torch.testing.assert_close(measured, first.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in clip.named_parameters())


@pytest.mark.parametrize("joint", [False, True])
def test_the_text_tower_learns_only_where_it_is_asked_to(clip: CLIP, joint: bool) -> None:
    model = Conditioned(new_denoiser(), text_encoder_of(clip))
    model.text_encoder.requires_grad_(joint)
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    model(noise, torch.tensor([10, 900]), tokenize(["a large red star on a white background", ""])).sum().backward()
    assert any(value.grad is not None and bool(value.grad.any()) for value in model.unet.parameters())
    assert set(reached(model.text_encoder.parameters())) == {joint}


@pytest.mark.parametrize("central", [0.0, 0.6, 1.0])
def test_noise_levels_follow_the_mixture_of_a_uniform_and_a_logit_normal(central: float) -> None:
    t = noise_levels(20_000, 1000, central, torch.Generator().manual_seed(0)).double().numpy() + 0.5

    def cumulative(values: np.ndarray) -> np.ndarray:
        share = values / 1000
        return (1 - central) * share + central * norm.cdf(logit(share))

    assert kstest(t, cumulative).pvalue > 1e-3


def test_balance_is_the_inverse_of_the_measured_error() -> None:
    levels = torch.tensor([0.0, 0.033, 0.086, 0.179, 0.313, 0.477])
    errors = torch.tensor([0.4527, 0.189, 0.093, 0.0541, 0.0376, 0.031])  # of v, read off a trained denoiser (LOG.md)
    weighed = balance(levels) * errors
    assert weighed.max() / weighed.min() < 1.25 and errors.max() / errors.min() > 14


def reached(parameters: Iterator[Tensor]) -> list[bool]:
    return [value.grad is not None for value in parameters]
