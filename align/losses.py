"""Equations of training, tensors in and tensor out, each with its number and source."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss


def denoising_mse(
    prediction: Float[Tensor, " batch *shape"],
    target: Float[Tensor, " batch *shape"],
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """The simple denoising loss: the mean of ||target - prediction||^2 / dimension (arXiv 2006.11239, eq. 14).

    `target` is the noise, the velocity or the flow, as the model predicts; `weights`, one for each sample, multiply its
    error (None: all count the same). Half precision is promoted to float32.

    Raises:
        ValueError: The shapes differ, or `weights` is not one number a sample (broadcasting would hide it).
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"The prediction has shape {tuple(prediction.shape)} and the target {tuple(target.shape)}; they must be "
            "equal. Drop the channels the model adds (a learned variance), or compute the target for this model."
        )
    if weights is None:
        return mse_loss(prediction.float(), target.float())
    if weights.shape != target.shape[:1]:
        raise ValueError(f"The weights have shape {tuple(weights.shape)}; they must be one for each of {len(target)}.")
    errors = mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
    return (weights * errors).mean()


def min_snr_weights(snr: Float[Tensor, " batch"], gamma: float, prediction_type: str) -> Float[Tensor, " batch"]:
    """Weights of `denoising_mse` that make noise levels agree (min-SNR-gamma, arXiv 2303.09556, section 3.4).

    min(SNR, gamma) is the weight of an error of the clean image; that of the noise is SNR times as large, and that of
    the velocity SNR + 1 times, so theirs are divided by these.

    Arguments:
        snr: alpha_t^2 / sigma_t^2 of each sample's noise level; 0 is pure noise.
        gamma: Above 0; the paper takes 5.
        prediction_type: "epsilon" or "v_prediction".

    Raises:
        ValueError: `gamma` is not above 0, or the prediction type is another.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; it must be above 0. 5 is usual.")
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(
        f"min-SNR weights are known for epsilon and v_prediction, not for {prediction_type!r}. Omit gamma."
    )
