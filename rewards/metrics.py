"""How well scores agree with what people said."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def choice_accuracy(
    scores: Float[Tensor, "group n"], chosen: Int[Tensor, " group"], present: Bool[Tensor, "group n"] | None = None
) -> float:
    """The share of groups in which the chosen image has the highest score, in [0, 1].

    Where k images tie for the highest score and the chosen one is among them, the group counts 1 / k: what breaking the
    tie at random would give. A constant score so gets chance level, not everything or nothing.

    Arguments:
        scores: Of the n images shown for one prompt.
        chosen: Index of the chosen image within its group.
        present: False where a group has fewer than n images; None where all are full.

    Raises:
        ValueError: No groups, or a score that is NaN.
    """
    if scores.numel() == 0 or scores.isnan().any():
        raise ValueError(f"Scores of shape {tuple(scores.shape)} must be non-empty and free of NaN.")
    if present is not None:
        scores = scores.masked_fill(~present, float("-inf"))
    best = scores == scores.amax(1, keepdim=True)
    hits = best.gather(1, chosen[:, None])[:, 0]
    return (hits.double() / best.sum(1)).mean().item()
