"""Paired comparison of two models: arrays of scores in, rows with bootstrap intervals and win rates out; diversity.

Prompts are resampled, not images: images of one prompt are not independent, so they are averaged first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

INTERVAL = (0.025, 0.975)
"""The two quantiles between which 95 % of the bootstrap lies."""


@dataclass(frozen=True)
class Row:
    """One line of `evaluation/result.json`: one dimension of one reward, base model against tuned model.

    All means are means over prompts of the mean over a prompt's images, in the reward's own scale; `n` counts
    pairs (one prompt and one seed); [ci_low, ci_high] is the 95 % interval of `difference`.
    """

    reward: str
    dimension: str
    n: int
    base_mean: float
    tuned_mean: float
    difference: float
    ci_low: float
    ci_high: float
    win_rate: float


@dataclass(frozen=True)
class RecoveredGap:
    """How much of what best-of-n would give the tuned model gives in one sample.

    `gap` is best-of-n minus the mean of the base model, `gain` tuned minus base, `share` their ratio with its 95 %
    interval. The ratio is None where the gap is not clearly above zero: then there is nothing to recover.
    """

    gap: float
    gain: float
    share: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; no interval where the statistic has no value for some resample."""

    value: float
    ci_low: float | None
    ci_high: float | None


def compare(
    reward: str,
    dimension: str,
    base: Float[Tensor, " n"],
    tuned: Float[Tensor, " n"],
    groups: Int[Tensor, " n"],
    seed: int,
    resamples: int = 10_000,
) -> Row:
    """Compare scores of the two models on the same prompts and seeds; `groups` is the prompt index of each pair.

    The interval is the percentile bootstrap over prompts (Efron 1979); ties count half in the win rate.

    Raises:
        ValueError: Lengths differ, scores are not finite, or there are fewer than two prompts.
    """
    before, after = _checked("base scores", base), _checked("tuned scores", tuned)
    prompt = groups.cpu().numpy()
    if not len(before) == len(after) == len(prompt):
        raise ValueError(
            f"{len(before)} base scores, {len(after)} tuned scores and {len(prompt)} prompt indices came; pairs need "
            "as many of each. Score both models on the same prompts and seeds."
        )
    wins = (after > before) + 0.5 * (after == before)
    means = _group_means(np.stack([before, after, after - before, wins], axis=1), prompt)
    base_mean, tuned_mean, difference, win_rate = (float(mean) for mean in means.mean(axis=0))
    low, high = _interval(_resampled_means(means[:, 2:3], seed, resamples)[:, 0])
    return Row(reward, dimension, len(before), base_mean, tuned_mean, difference, low, high, win_rate)


def recovered_gap(
    judge_base: Float[Tensor, "prompt n"],
    selector_base: Float[Tensor, "prompt n"],
    judge_tuned: Float[Tensor, "prompt m"],
    seed: int,
    resamples: int = 10_000,
) -> RecoveredGap:
    """The share of the base model's best-of-n gain, chosen by `selector` and judged by `judge`, that tuning recovers.

    `judge_base` and `selector_base` score the same n images of each prompt, `judge_tuned` the tuned model's.
    The interval resamples prompts and takes the ratio of the resampled means, so it holds the uncertainty of both.

    Raises:
        ValueError: Shapes that do not fit, scores that are not finite, or fewer than two prompts.
    """
    before, chosen_by, after = (
        _checked(f"{name} scores", scores)
        for name, scores in (("judge_base", judge_base), ("selector_base", selector_base), ("judge_tuned", judge_tuned))
    )
    if before.shape != chosen_by.shape or len(before) != len(after):
        raise ValueError(
            f"judge_base has shape {before.shape}, selector_base {chosen_by.shape} and judge_tuned {after.shape}; the "
            "first two must be equal and all must have the same prompts. Score the same images with both rewards."
        )
    best = np.take_along_axis(before, chosen_by.argmax(axis=1)[:, None], axis=1)[:, 0]
    mean = before.mean(axis=1)
    per_prompt = np.stack([best - mean, after.mean(axis=1) - mean], axis=1)
    gap, gain = (float(value) for value in per_prompt.mean(axis=0))
    gaps, gains = _resampled_means(per_prompt, seed, resamples).T
    if gaps.min() <= 0:  # a ratio whose denominator changes sign has no percentile interval
        return RecoveredGap(gap, gain, None, None, None)
    return RecoveredGap(gap, gain, gain / gap, *_interval(gains / gaps))


def mean_interval(
    values: Float[Tensor, "prompt column"], seed: int, resamples: int = 10_000
) -> tuple[Float[Tensor, " column"], Float[Tensor, " column"], Float[Tensor, " column"]]:
    """The mean over prompts of each column, and both ends of its 95 % interval (percentile bootstrap over prompts).

    Raises:
        ValueError: Values that are not finite, or fewer than two prompts.
    """
    rows = _checked("columns", values)
    lows, highs = np.quantile(_resampled_means(rows, seed, resamples), INTERVAL, axis=0)
    return torch.from_numpy(rows.mean(axis=0)), torch.from_numpy(lows), torch.from_numpy(highs)


def diagonal_margins(
    effects: Float[Tensor, "prompt measure treatment"], seed: int, resamples: int = 10_000
) -> list[Estimate]:
    """How much more each measure is moved by its own treatment than by any other: of the mean over prompts, each row's
    diagonal minus the largest of the rest of the row, with its 95 % interval (percentile bootstrap over prompts; the
    largest is sought anew in every resample).

    Arguments:
        effects: As many measures as treatments, two or more, treatment k meant for measure k; measures on a common
            scale, such as standard deviations.
        seed: Of the draws.
        resamples: How many there are.

    Raises:
        ValueError: Effects that are not finite or not square, or fewer than two prompts.
    """
    values = _checked("effects", effects)
    prompts, measures, treatments = values.shape
    if measures != treatments or measures < 2:
        raise ValueError(f"{measures} measures came with {treatments} treatments; give two or more, as many of each.")

    def margins(means: Float[np.ndarray, "draw cell"]) -> Float[np.ndarray, "draw measure"]:
        tables, own = means.reshape(-1, measures, measures), np.eye(measures, dtype=bool)
        return tables[:, own] - np.where(own, -np.inf, tables).max(axis=2)

    flat = values.reshape(prompts, -1)
    found, drawn = margins(flat.mean(axis=0)[None])[0], margins(_resampled_means(flat, seed, resamples))
    return [Estimate(float(value), *_interval(column)) for value, column in zip(found, drawn.T, strict=True)]


def interval_of(
    statistic: Callable[..., float],
    arrays: Sequence[Shaped[np.ndarray, "n ..."]],
    groups: Int[np.ndarray, " n"],
    seed: int,
    resamples: int = 10_000,
) -> Estimate:
    """Any statistic of rows and its 95 % interval (percentile bootstrap over prompts, Efron 1979).

    A prompt is drawn with all of its rows, as rows of one prompt are not independent. For the difference of two
    models, let the statistic take both: `lambda a, b, true: plcc(a, true) - plcc(b, true)`.

    Arguments:
        statistic: Called as `statistic(*arrays)`, on all rows and on the rows of the prompts drawn.
        arrays: With one row for each image.
        groups: The prompt index of each row.
        seed: Of the draws.
        resamples: How many there are.

    Raises:
        ValueError: Lengths that differ, or fewer than two prompts.
    """
    lengths = [len(array) for array in arrays]
    if any(length != len(groups) for length in lengths):
        raise ValueError(
            f"Arrays of {lengths} rows and {len(groups)} prompt indices came; there must be as many of each. Give "
            "every row the index of its prompt."
        )
    by_prompt, counts = np.argsort(groups, kind="stable"), np.unique(groups, return_counts=True)[1]
    _check_prompts(len(counts))
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(counts), size=len(counts)) for _ in range(resamples))
    samples = (by_prompt[_places(draw, counts)] for draw in draws)
    values = np.array([statistic(*(array[rows] for array in arrays)) for rows in samples])
    return Estimate(statistic(*arrays), *(_interval(values) if np.isfinite(values).all() else (None, None)))


def diversity(embeddings: Float[Tensor, "image dim"], groups: Int[Tensor, " image"]) -> Float[Tensor, " prompt"]:
    """Mean cosine distance (1 - cosine) between two images of a prompt, for each prompt, by rising prompt index.

    `groups` is the prompt index of each image. With u the mean of the m unit vectors of a prompt, the mean over its
    m (m - 1) / 2 pairs is m (1 - |u|^2) / (m - 1), as m^2 |u|^2 is the sum of all m^2 cosines and m of them are 1.

    Raises:
        ValueError: Lengths differ, a prompt has one image only, or embeddings that are not finite.
    """
    vectors, prompt = _checked("embeddings", embeddings), groups.cpu().numpy()
    if len(vectors) != len(prompt):
        raise ValueError(
            f"{len(vectors)} embeddings and {len(prompt)} prompt indices came; there must be as many of each. Give "
            "every image the index of its prompt."
        )
    prompts, counts = np.unique(prompt, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"Prompt {prompts[counts.argmin()]} came with one image; a distance needs two. Generate two or more images "
            "of each prompt."
        )
    mean = _group_means(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), prompt)
    return torch.from_numpy(counts * (1 - (mean**2).sum(axis=1)) / (counts - 1))


def _checked(name: str, scores: Tensor) -> Float[np.ndarray, "..."]:
    values = scores.detach().double().cpu().numpy()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"The {name} hold {(~np.isfinite(values)).sum()} of {values.size} values that are not finite; there "
            "must be one or more, all finite. Score those images again."
        )
    return values


def _group_means(
    values: Float[np.ndarray, "n column"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "group column"]:
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, index, values)
    return sums / counts[:, None]


def _resampled_means(
    values: Float[np.ndarray, "prompt column"], seed: int, resamples: int
) -> Float[np.ndarray, "resample column"]:
    """Column means of `resamples` bootstrap samples of the rows, in blocks that keep the indices below 32 MiB.

    Each sample is how often it drew each row, times the rows: to gather the rows would need memory for every column.
    """
    prompts = len(values)
    _check_prompts(prompts)
    generator = np.random.default_rng(seed)
    block = max(1, 2**22 // prompts)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([_drawn(generator, size, prompts) @ values / prompts for size in sizes])


def _check_prompts(prompts: int) -> None:
    if prompts < 2:
        raise ValueError(
            f"An interval over prompts needs two prompts or more, {prompts} came. Evaluate on more prompts."
        )


def _drawn(generator: np.random.Generator, size: int, prompts: int) -> Int[np.ndarray, "size prompts"]:
    """How often each of `size` bootstrap samples drew each prompt."""
    cells = generator.integers(prompts, size=(size, prompts)) + prompts * np.arange(size)[:, None]
    return np.bincount(cells.ravel(), minlength=size * prompts).reshape(size, prompts)


def _places(draw: Int[np.ndarray, " prompt"], counts: Int[np.ndarray, " prompt"]) -> Int[np.ndarray, " drawn"]:
    """Where the rows of the drawn prompts stand, if prompt k has the `counts[k]` places behind those before it."""
    sizes = counts[draw]
    first = (np.cumsum(counts) - counts)[draw] - (np.cumsum(sizes) - sizes)
    return np.repeat(first, sizes) + np.arange(sizes.sum())


def _interval(statistics: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    low, high = np.quantile(statistics, INTERVAL)
    return float(low), float(high)
