"""Losses against torch and by hand."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config

from align.losses import denoising_mse, min_snr_weights


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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_clean_image_by_the_clamped_snr(prediction_type: str) -> None:
    """The definition of the paper, on an error that is made on purpose: the weighted loss of the network's own output
    equals min(SNR, gamma) times the squared error of the clean image that follows from it."""
    generator, alpha = torch.Generator().manual_seed(0), torch.tensor([0.999, 0.9, 0.5, 0.1], dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    x, noise, error = torch.randn(3, 4, 3, dtype=torch.float64, generator=generator)
    a, s = alpha[:, None], sigma[:, None]
    noisy = a * x + s * noise
    target = noise if prediction_type == "epsilon" else a * noise - s * x
    prediction = target + error
    clean = (noisy - s * prediction) / a if prediction_type == "epsilon" else a * noisy - s * prediction
    snr = (alpha / sigma) ** 2
    ours = denoising_mse(prediction, target, min_snr_weights(snr, 5.0, prediction_type).float())
    theirs = (snr.clamp(max=5.0) * (clean - x).square().mean(1)).mean()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)


def test_min_snr_is_finite_at_pure_noise_and_refuses_what_it_does_not_know() -> None:
    zero = torch.zeros(1)
    assert (min_snr_weights(zero, 5.0, "epsilon").item(), min_snr_weights(zero, 5.0, "v_prediction").item()) == (1, 0)
    with pytest.raises(ValueError, match="gamma is 0"):
        min_snr_weights(zero, 0.0, "epsilon")
    with pytest.raises(ValueError, match="not for 'flow'"):
        min_snr_weights(zero, 5.0, "flow")
