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
