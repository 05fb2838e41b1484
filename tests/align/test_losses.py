"""Losses against torch and by hand."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

from align.losses import denoising_mse


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where annotations are not checked and our own errors must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def test_denoising_mse_is_the_mean_over_all_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 5, 4, 8, 8, generator=generator)
    by_sample = torch.stack([(t - p).square().sum() / p.numel() for p, t in zip(prediction, target, strict=True)])
    torch.testing.assert_close(denoising_mse(prediction, target), by_sample.mean())


def test_denoising_mse_weighs_each_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction, target = torch.randn(2, 5, 4, 8, 8, generator=generator)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
    alone = [denoising_mse(p[None], t[None]) for p, t in zip(prediction, target, strict=True)]
    torch.testing.assert_close(denoising_mse(prediction, target, weights), (weights * torch.stack(alone)).mean())
    torch.testing.assert_close(denoising_mse(prediction, target, torch.ones(5)), denoising_mse(prediction, target))


@pytest.mark.parametrize("shape", [(2, 1), (1,), (3,)])
def test_denoising_mse_refuses_to_broadcast_weights(shape: tuple[int, ...], unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match="they must be one for each of 2"):
        denoising_mse(torch.zeros(2, 8, 2, 2), torch.zeros(2, 8, 2, 2), torch.ones(shape))


def test_denoising_mse_of_half_precision_is_computed_in_float32() -> None:
    loss = denoising_mse(torch.zeros(1, 4, dtype=torch.float16), torch.full((1, 4), 300.0, dtype=torch.float16))
    assert (loss.dtype, loss.item()) == (torch.float32, 90_000.0)  # beyond the largest float16


def test_denoising_mse_refuses_to_broadcast(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 8, 2, 2\) and the target \(2, 1, 2, 2\)"):
        denoising_mse(torch.zeros(2, 8, 2, 2), torch.zeros(2, 1, 2, 2))
