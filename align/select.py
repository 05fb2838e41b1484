"""Scores in, indices out: which candidates are kept for fine-tuning, and what best-of-k would give. Pure functions."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """What was kept of `prompts` x n candidates, and why the rest was not.

    Attributes:
        kept: (prompt, sample) index pairs, by prompt, the best sample of a prompt first.
        threshold: The score a candidate had to reach; None where there was none.
        prompts: How many prompts there were.
        prompts_below_threshold: How many of them were dropped, none of their samples reaching the threshold.
    """

    kept: tuple[tuple[int, int], ...]
    threshold: float | None
    prompts: int
    prompts_below_threshold: int


def best_of_n(scores: Float[Tensor, "prompt n"], per_prompt: int = 1, threshold: float | None = None) -> Selection:
    """Keep the best `per_prompt` samples of each prompt, and of these only the ones that score at least `threshold`.

    Of equal scores the one with the lowest sample index is kept.

    Raises:
        ValueError: Scores that are not finite or not "prompt n", `per_prompt` outside [1, n], or nothing left to keep.
    """
    values = _checked(scores)
    if not 1 <= per_prompt <= values.shape[1]:
        raise ValueError(
            f"per_prompt is {per_prompt}; it must be between 1 and the {values.shape[1]} samples of a prompt. "
            "Keep fewer, or generate more samples for each prompt."
        )
    order = _best_first(values)[:, :per_prompt]
    passes = values.gather(1, order) >= (-torch.inf if threshold is None else threshold)
    if threshold is not None and not passes.any():
        raise ValueError(_nothing_kept(values, threshold))
    kept = tuple((prompt, int(order[prompt, rank])) for prompt, rank in passes.nonzero().tolist())
    return Selection(kept, threshold, len(values), int((~passes.any(dim=1)).sum()))


def quantile_threshold(scores: Float[Tensor, "..."], q: float) -> float:
    """The score below which a share `q` of the base model's candidates falls (linear interpolation between scores).

    Raises:
        ValueError: `q` outside [0, 1], no scores, or scores that are not finite.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"The quantile is {q}; it must be between 0 and 1. Use 0.9 to keep the best tenth.")
    if scores.numel() == 0 or not bool(scores.isfinite().all()):
        raise ValueError("A quantile needs one or more scores, all finite; score the candidates again.")
    return float(np.quantile(scores.detach().double().cpu().numpy(), q))


def best_of_k_by_prompt(
    scores: Float[Tensor, "prompt n"], judge: Float[Tensor, "prompt n"] | None = None
) -> Float[Tensor, "prompt n"]:
    """E[score of the best of k samples of a prompt] for k = 1..n, from n samples a prompt (float64).

    The unbiased estimator that averages over all subsets of k without replacement: with the scores sorted upwards,
    the i-th of n is the best of C(i - 1, k - 1) of the C(n, k) subsets.
    With `judge` the best is still chosen by `scores`, but its worth is read from `judge`; a curve that bends down
    there is a reward being hacked.

    Raises:
        ValueError: Scores that are not finite or not "prompt n", or `judge` of another shape.
    """
    values = _checked(scores)
    worth = values if judge is None else _checked(judge)
    if worth.shape != values.shape:
        raise ValueError(
            f"judge has shape {tuple(worth.shape)} and scores {tuple(values.shape)}; they must be scores of the same "
            "images. Score one set of candidates with both."
        )
    worst_first = _best_first(values).flip(1)
    return (worth.gather(1, worst_first) @ _best_of_k_weights(values.shape[1])).to(scores.device)


def _best_of_k_weights(n: int) -> Float[Tensor, "n n"]:
    """weights[i - 1, k - 1] = C(i - 1, k - 1) / C(n, k): the chance that the i-th smallest is the best of k.

    In logarithms, since C(n, k) itself overflows beyond n = 1029; as the chances of each k sum to 1, a softmax over i
    supplies the factors that do not depend on i.
    """
    i = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
    k = i.T
    logits = torch.lgamma(i) - torch.lgamma((i - k).clamp(min=0) + 1)
    return logits.where(i >= k, -torch.inf).softmax(dim=0)


def _best_first(values: Float[Tensor, "prompt n"]) -> Int[Tensor, "prompt n"]:
    """Sample indices by falling score; stable, so the lowest index comes first among equals."""
    return values.sort(dim=1, descending=True, stable=True).indices


def _checked(scores: Tensor) -> Float[Tensor, "prompt n"]:
    """The scores in float64 on the CPU (a threshold given as a Python float is then compared exactly)."""
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(
            f"Scores came with shape {tuple(scores.shape)}; they must be (prompts, samples), one or more of each. "
            "Give every prompt the same number of samples."
        )
    bad = (~scores.isfinite()).nonzero()
    if len(bad):
        prompt, sample = bad[0].tolist()
        raise ValueError(
            f"{len(bad)} of {scores.numel()} scores are not finite, the first at prompt {prompt}, sample {sample}; "
            "every prompt needs the same number of finite scores. Score those images again."
        )
    return scores.detach().double().cpu()


def _nothing_kept(values: Float[Tensor, "prompt n"], threshold: float) -> str:
    best = values.amax(dim=1)
    return (
        f"The threshold {threshold!r} keeps nothing: the best of {values.numel()} candidates scores "
        f"{best.max().item()!r}. A threshold of at most {best.max().item()!r} keeps something, and "
        f"{best.median().item()!r} keeps half of the {len(values)} prompts. Lower it, or give it as a quantile."
    )
