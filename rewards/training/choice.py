"""The loss of HPS v1: which image of a group was chosen (Wu et al., arXiv 2303.14420)."""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def choice_loss(
    cosines: Float[Tensor, "group n"],
    chosen: Int[Tensor, " group"],
    logit_scale: Float[Tensor, ""],
    present: Bool[Tensor, "group n"] | None = None,
) -> Float[Tensor, ""]:
    """The mean over groups of -log softmax(exp(logit_scale) * cosines)[chosen], in nats.

    A person saw the n images of one prompt and chose one; the softmax over the group is the model's probability of each
    choice.

    Arguments:
        cosines: Image i of a group against the group's prompt.
        chosen: Index of the chosen image within its group.
        logit_scale: The logarithm of the factor, as open_clip keeps it.
        present: False where a group has fewer than n images; None where all are full.

    Raises:
        ValueError: A chosen image is not present.
    """
    logits = logit_scale.exp() * cosines
    if present is not None:
        if not present.gather(1, chosen[:, None]).all():
            raise ValueError("The chosen image of a group is masked out; `present` must be True for it.")
        logits = logits.masked_fill(~present, float("-inf"))
    return cross_entropy(logits, chosen)
