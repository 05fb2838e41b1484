"""Losses against diffusers' own weighting and against torch."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from jaxtyping import config

from align.losses import denoising_mse, min_snr_weight


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where annotations are not checked and our own errors must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def test_denoising_mse_is_the_mean_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 5, 4, 8, 8, generator=generator)
    torch.testing.assert_close(denoising_mse(prediction, target), torch.nn.functional.mse_loss(prediction, target))


def test_denoising_mse_weights_each_sample() -> None:
    prediction, target = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    assert denoising_mse(prediction, target, torch.tensor([1.0, 3.0])).item() == 2.0


def test_denoising_mse_of_half_precision_is_computed_in_float32() -> None:
    loss = denoising_mse(torch.zeros(1, 4, dtype=torch.float16), torch.full((1, 4), 300.0, dtype=torch.float16))
    assert (loss.dtype, loss.item()) == (torch.float32, 90_000.0)  # beyond the largest float16


def test_denoising_mse_refuses_to_broadcast(unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 8, 2, 2\) and the target \(2, 1, 2, 2\)"):
        denoising_mse(torch.zeros(2, 8, 2, 2), torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weight_on_real_schedulers(
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"], gamma: float
) -> None:
    """The formulas of diffusers' train_text_to_image.py, on its own signal-to-noise ratios."""
    timesteps = torch.arange(1000)
    snr = compute_snr(DDPMScheduler(beta_schedule=schedule), timesteps)
    capped = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    torch.testing.assert_close(min_snr_weight(snr, gamma, "epsilon"), capped / snr)
    torch.testing.assert_close(min_snr_weight(snr, gamma, "v_prediction"), capped / (snr + 1))


def test_min_snr_weight_is_finite_at_zero_terminal_snr() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    snr = compute_snr(scheduler, torch.tensor([999]))
    snr = torch.cat([snr, torch.zeros(1)])
    assert min_snr_weight(snr, 5.0, "epsilon").tolist() == [1.0, 1.0]
    assert min_snr_weight(snr, 5.0, "v_prediction")[1].item() == 0.0


def test_min_snr_weight_makes_epsilon_and_velocity_losses_equal() -> None:
    """Both carry min(SNR, gamma) ||x0 - x0_hat||^2, so a model's error costs the same whatever it predicts."""
    generator = torch.Generator().manual_seed(0)
    x_0, error, noise = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator)
    alpha = torch.linspace(0.1, 0.99, 6, dtype=torch.float64)[:, None]
    sigma = (1 - alpha**2).sqrt()
    noise_hat, x_0_hat = noise - alpha / sigma * error, x_0 + error  # both give the same noisy image
    snr = ((alpha / sigma) ** 2)[:, 0]
    epsilon = denoising_mse(noise_hat, noise, min_snr_weight(snr, 5.0, "epsilon"))
    velocity = denoising_mse(
        alpha * noise_hat - sigma * x_0_hat, alpha * noise - sigma * x_0, min_snr_weight(snr, 5.0, "v_prediction")
    )
    clean = denoising_mse(x_0_hat, x_0, snr.clamp(max=5.0))
    torch.testing.assert_close(epsilon.double(), clean.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(velocity.double(), clean.double(), rtol=1e-5, atol=0)


def test_min_snr_weight_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="prediction_type 'flow'; it must be 'epsilon' or 'v_prediction'"):
        min_snr_weight(torch.ones(2), 5.0, "flow")
    with pytest.raises(ValueError, match="snr_gamma is 0.0; it must be above 0"):
        min_snr_weight(torch.ones(2), 0.0, "epsilon")
