"""How well scores and marked words agree with what people said; heatmaps are in `rewards.saliency`.

Those of arrays are functions of a whole data set, so that a bootstrap can call them again on resampled rows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
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


def plcc(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float:
    """Pearson's linear correlation coefficient, in [-1, 1]; NaN where either is constant, which has none.

    Raises:
        ValueError: Lengths that differ, no scores, or one that is not finite.
    """
    if len(predicted) != len(true) or len(true) == 0 or not np.isfinite([predicted, true]).all():
        raise ValueError(
            f"{len(predicted)} predicted and {len(true)} true scores came; there must be as many of each, one or more, "
            "all finite."
        )
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    x, y = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (predicted, true))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def srcc(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation coefficient: `plcc` of the ranks, equal scores sharing the mean of theirs."""
    return plcc(rankdata(predicted), rankdata(true))


def word_counts(predicted: Sequence[Sequence[bool]], true: Sequence[Sequence[bool]]) -> Int[np.ndarray, "prompt 3"]:
    """How many words of each prompt are rightly called misaligned, wrongly so, and missed.

    Arguments:
        predicted: For each prompt, whether each of its words is called misaligned.
        true: Whether it is, by the annotators.

    Raises:
        ValueError: No prompts, or labels that do not pair up.
    """
    lengths = [[len(words) for words in prompts] for prompts in (predicted, true)]
    if lengths[0] != lengths[1] or not true:
        raise ValueError(
            f"Labels of {lengths[0]} and {lengths[1]} words came for one or more prompts; label the same words."
        )
    pairs = [(np.array(p, dtype=bool), np.array(t, dtype=bool)) for p, t in zip(predicted, true, strict=True)]
    return np.array([(np.sum(p & t), np.sum(p & ~t), np.sum(~p & t)) for p, t in pairs])


def word_scores(counts: Int[np.ndarray, "*prompt 3"]) -> Float[np.ndarray, "*prompt 3"]:
    """Precision, recall and F1 of the misaligned words, from rows of `word_counts` or from their sum.

    `word_scores(counts.sum(0))` is corpus-level, what RAHF reports (arXiv 2312.10240); of the rows, it is per prompt.
    NaN where a ratio has no denominator: precision if nothing is called misaligned, recall if nothing is, F1 if both.
    The public port of RAHF (github.com/youweiliang/RichHF) averages over prompts with 0 in these places, so that a
    prompt without misaligned words counts as a failure even where none is predicted: `nan_to_num(0).mean(0)` of rows.
    """
    right, wrong, missed = np.moveaxis(counts.astype(np.float64), -1, 0)
    ratios = np.stack([right, right, 2 * right], axis=-1)
    whole = np.stack([right + wrong, right + missed, 2 * right + wrong + missed], axis=-1)
    return np.divide(ratios, whole, out=np.full_like(ratios, np.nan), where=whole > 0)
