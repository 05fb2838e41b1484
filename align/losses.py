"""Equations of training, tensors in and tensor out, each with its number and source."""

import torch
from jaxtyping import Float
from torch import Tensor


def denoising_mse(
    prediction: Float[Tensor, " batch *shape"],
    target: Float[Tensor, " batch *shape"],
    weight: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """The simple denoising loss: the mean of ||target - prediction||^2 / dimension (arXiv 2006.11239, eq. 14).

    `target` is the noise, the velocity or the flow, as the model predicts. `weight` is one factor for each sample
    (see `min_snr_weight`). Half precision is promoted to float32.

    Raises:
        ValueError: The shapes differ (broadcasting would hide it).
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"The prediction has shape {tuple(prediction.shape)} and the target {tuple(target.shape)}; they must be "
            "equal. Drop the channels the model adds (a learned variance), or compute the target for this model."
        )
    per_sample = (target.float() - prediction.float()).square().flatten(1).mean(dim=1)
    return (per_sample if weight is None else weight * per_sample).mean()


def min_snr_weight(snr: Float[Tensor, " batch"], gamma: float, prediction_type: str) -> Float[Tensor, " batch"]:
    """Min-SNR-gamma weight of `denoising_mse` (arXiv 2303.09556, section 3.4): min(SNR, gamma) carried over from the
    loss on the clean image to the loss on what the model predicts.

    Epsilon: min(SNR, gamma) / SNR. Velocity: min(SNR, gamma) / (SNR + 1). At SNR 0 (zero terminal SNR) the epsilon
    weight is its limit, 1.

    Raises:
        ValueError: Another prediction type, or a gamma that is not positive.
    """
    if gamma <= 0:
        raise ValueError(f"snr_gamma is {gamma}; it must be above 0. The paper uses 5.")
    if prediction_type == "epsilon":
        return torch.clamp(gamma / snr, max=1)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(
        f"Min-SNR weighting is not defined here for prediction_type {prediction_type!r}; it must be 'epsilon' or "
        "'v_prediction'. Train this model without snr_gamma."
    )
