"""Scores in, indices out: which candidates are kept for fine-tuning, and what best-of-k would give. Pure functions."""

from collections.abc import Iterator
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


@dataclass(frozen=True)
class Outstanding:
    """Which of many images stand out among those of their own prompt, and how far.

    Attributes:
        images: Their indices, by the first image of their prompt; at most one of a prompt.
        shares: The softmax share of each of them among the images of its prompt.
    """

    images: tuple[int, ...]
    shares: tuple[float, ...]


def softmax_preferred(
    scores: Float[Tensor, " image"],
    groups: Int[Tensor, " image"],
    scale: float,
    min_group_size: int = 4,
    margin: float = 2.0,
) -> Outstanding:
    """Of each prompt the image that stands out at the top (arXiv 2303.14420, section 5).

    With p = softmax(scale * scores) over the n images of a prompt, the best one is preferred if its p is above
    margin / n. Of equal scores the first image counts.

    Arguments:
        scores: Of the images.
        groups: The prompt of each image, as any number that tells prompts apart.
        scale: What scores are multiplied by: 100 for the cosines of HPS, or what a reward was trained with.
        min_group_size: Prompts with fewer images are left out.
        margin: Of p, in shares of an even one.

    Raises:
        ValueError: Scores that are not finite, lengths that differ, settings out of bounds, no prompt with enough
            images, or nothing that stands out.
    """
    values = _checked_images(scores, groups, scale, min_group_size, margin)
    return _outstanding(values * scale, _large(groups, min_group_size), margin, "preferred")


def softmax_nonpreferred(
    scores: Float[Tensor, " image"],
    groups: Int[Tensor, " image"],
    scale: float,
    min_group_size: int = 4,
    margin: float = 2.0,
) -> Outstanding:
    """Of each prompt the image that stands out at the bottom: `softmax_preferred` of the negated scores."""
    values = _checked_images(scores, groups, scale, min_group_size, margin)
    return _outstanding(values * -scale, _large(groups, min_group_size), margin, "non-preferred")


def levels_by_rank(
    scores: Float[Tensor, " image"], groups: Int[Tensor, " image"], levels: int, min_group_size: int = 4
) -> Int[Tensor, " image"]:
    """Which fraction of its prompt's images each image is in: 0 is the worst, `levels` - 1 the best, -1 is left out.

    With rank r from 0 for the lowest of the n scores of a prompt, the level is floor(r levels / n): levels compare
    images of one prompt, so that hard prompts are not all of a low one. Equal scores rank by their order.

    Arguments:
        scores: Of the images.
        groups: The prompt of each image, as any number that tells prompts apart.
        levels: How many.
        min_group_size: Prompts with fewer images, or with fewer than there are levels, are left out.

    Raises:
        ValueError: Scores that are not finite, lengths that differ, fewer than two levels, or no prompt with enough
            images.
    """
    values = _checked_images(scores, groups, 1.0, min_group_size, 1.0)
    if levels < 2:
        raise ValueError(f"levels is {levels}; there must be at least two to tell images apart.")
    of_prompt, least = list(_by_group(groups)), max(levels, min_group_size)
    found = torch.full((len(values),), -1)
    for images in (one for one in of_prompt if len(one) >= least):
        ranks = values[images].argsort(stable=True).argsort()
        found[images] = ranks * levels // len(images)
    if (found < 0).all():
        raise ValueError(
            f"The largest of {len(of_prompt)} prompts has {max(map(len, of_prompt))} images, and {levels} levels of "
            f"groups of min_group_size = {min_group_size} need {least}. Give more images of each prompt."
        )
    return found


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


def _by_group(groups: Int[Tensor, " image"]) -> Iterator[Int[Tensor, " member"]]:
    """The images of each group in their order; groups by their first image."""
    _, number, counts = groups.cpu().unique(return_inverse=True, return_counts=True)
    members = number.argsort(stable=True).split(counts.tolist())
    yield from sorted(members, key=lambda images: int(images[0]))


def _large(groups: Int[Tensor, " image"], min_group_size: int) -> list[Tensor]:
    """The images of each prompt that has enough."""
    of_prompt = list(_by_group(groups))
    large = [images for images in of_prompt if len(images) >= min_group_size]
    if not large:
        raise ValueError(
            f"The largest of {len(of_prompt)} prompts has {max(map(len, of_prompt))} images, and a group needs "
            f"min_group_size = {min_group_size}. Give more images of each prompt (prompts must be equal to the letter)."
        )
    return large


def _outstanding(logits: Float[Tensor, " image"], groups: list[Tensor], margin: float, side: str) -> Outstanding:
    """The images whose share of their group is above margin / n."""
    tops = [logits[images].softmax(0).max(0) for images in groups]
    evens = [top.values.item() * len(images) for top, images in zip(tops, groups, strict=True)]
    if max(evens) <= margin:
        raise ValueError(
            f"No image is {side}: of {len(groups)} prompts, the one that stands out most has {max(evens):.4g} times an "
            f"even share of the softmax, and the margin is {margin:g}. {_remedy(max(evens))}"
        )
    kept = [place for place, even in enumerate(evens) if even > margin]
    indices = tuple(int(groups[place][tops[place].indices]) for place in kept)
    return Outstanding(indices, tuple(tops[place].values.item() for place in kept))


def _remedy(most: float) -> str:
    """What to do where nothing stands out; a margin of at least an even share, 1, may not be enough."""
    if most < 1.001:
        return "Raise the scale; if the scores of a prompt are all equal, give images that differ."
    return f"A margin below {most:.4g} keeps something, and so does a larger scale."


def _checked_images(
    scores: Tensor, groups: Tensor, scale: float, min_group_size: int, margin: float
) -> Float[Tensor, " image"]:
    """The scores in float64 on the CPU."""
    if scores.shape != groups.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"Scores came with shape {tuple(scores.shape)} and groups with {tuple(groups.shape)}; give one score and "
            "the number of its prompt for each of one or more images."
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(
            f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are not finite. Score those images again."
        )
    if scale <= 0 or margin < 1 or min_group_size < 2:
        raise ValueError(
            f"scale is {scale:g}, margin {margin:g} and min_group_size {min_group_size}; they must be above 0, at "
            "least 1 (an even share) and at least 2."
        )
    return scores.detach().double().cpu()


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
