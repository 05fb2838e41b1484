"""How well predicted heatmaps agree with what people marked: the saliency metrics of RAHF (arXiv 2312.10240).

With P the prediction and G the target, both in [0, 1], of one size and of N pixels, the formulas are those of Bylinskii
et al. (arXiv 1604.03605). What is not defined for a map is NaN, and a table has the mean of the rest:

    mse         the mean of (P - G)^2, for every map
    mse_empty   the same where G is empty (0 everywhere); the metrics below are defined where it is not
    cc          Pearson's correlation of P and G over the pixels; 0 where either is constant
    kld         the sum of g log(e + g / (p + e)) in nats, with p = P / (e + sum of P), and g likewise
    sim         the sum of min(p, g), with p and g divided by their sums; an empty P has p = 0
    nss         the mean over the fixated pixels of (P - mean) / (standard deviation of P, N - 1); 0 where P is constant
    auc_judd    the area under the curve of true against false positives; the thresholds are P at the fixated pixels

AUC-Judd: at threshold t, with n fixated pixels, TPR = #(fixated, P >= t) / n, FPR = #(not fixated, P >= t) / (N - n);
(0, 0), these points and (1, 1) are joined by straight lines. Equal predictions count together, where MIT's code puts
them in random order: the same in the mean, and 0.5 for a constant P. NaN where all pixels or none are fixated.

`Conventions` selects among published code that gives other numbers. Not selectable: some divide by N in the deviation
of NSS, which makes it 1.000002 times as large at 512 x 512. Interpolation makes more pixels positive, so NSS and
AUC-Judd depend on the size at which maps are compared: state it.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Maps: TypeAlias = Float[Tensor, "batch h w"]
Pixels: TypeAlias = Float[np.ndarray, "batch pixel"]
Chosen: TypeAlias = Bool[np.ndarray, "batch pixel"]
Values: TypeAlias = Float[np.ndarray, " batch"]

HEATMAP_METRICS = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "auc_judd")
"""Lower is better for `mse`, `mse_empty` and `kld`, higher for the others."""

BLOCK_PIXELS = 2**15
"""Judged at a time: 256 KiB of float64, which stay in the processor's cache and are not given back to the system."""


@dataclass(frozen=True)
class Conventions:
    """What published code does not agree on; the defaults are those of github.com/youweiliang/RichHF.

    Attributes:
        fixated_above: For NSS and AUC-Judd, a pixel is fixated where G is above this. All code for RichHF-18K takes 0:
            one annotator of three is enough.
        kld_epsilon: The e of KLD. MIT's saliency benchmark takes 2.2204e-16, and none in the sums.
        sim_min_max: Whether SIM stretches both maps to [0, 1] before it divides by the sums, unless they are constant.
            MIT's benchmark does. It lowers the floor of dense predictions, and so raises SIM.
    """

    fixated_above: float = 0.0
    kld_epsilon: float = 1e-8
    sim_min_max: bool = False


RICHHF = Conventions()
"""Of the public port of RAHF. The paper does not state its own."""
MIT = Conventions(kld_epsilon=2.2204e-16, sim_min_max=True)
"""Of the MIT saliency benchmark (github.com/cvzoya/saliency)."""


def heatmap_metrics(
    predicted: Maps, target: Maps, conventions: Conventions = RICHHF
) -> dict[str, Float[Tensor, " batch"]]:
    """Every metric of `HEATMAP_METRICS` for each map, in float64; see the head of this module.

    It is NumPy's work, on the CPU, where sorting, counting and calls for few pixels are faster than torch's.

    Raises:
        ValueError: Shapes that differ, no maps, or values outside [0, 1].
    """
    _check(predicted, target)
    p, g = _pixels(predicted), _pixels(target)
    size = max(1, BLOCK_PIXELS // p.shape[1])
    blocks = [(p[start : start + size], g[start : start + size]) for start in range(0, len(p), size)]
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined is NaN
        judged = [_judge(*block, conventions) for block in blocks]
    found = {name: np.concatenate([block[name] for block in judged]) for name in HEATMAP_METRICS}
    return {name: torch.from_numpy(values).to(predicted.device) for name, values in found.items()}


def _check(predicted: Maps, target: Maps) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"Predicted maps of shape {tuple(predicted.shape)} came with targets of shape {tuple(target.shape)}; both "
            "must have the same. Resize the predictions to the targets."
        )
    for name, maps in (("predicted", predicted), ("target", target)):
        if maps.numel() == 0 or not (maps.amin() >= 0 and maps.amax() <= 1):
            raise ValueError(f"The {name} maps must be one or more in [0, 1] without NaN; divide 8-bit maps by 255.")


def _pixels(maps: Maps) -> Pixels:
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(1).detach().cpu().numpy()


def _judge(predicted: Pixels, target: Pixels, conventions: Conventions) -> dict[str, Values]:
    p, g = predicted.astype(np.float64), target.astype(np.float64)
    flat_p, flat_g, fixated = _is_constant(predicted), _is_constant(target), target > conventions.fixated_above
    marked = _Places.of(target != 0)
    some = marked if conventions.fixated_above == 0 else _Places.of(fixated)
    error, centred_p, centred_g = p - g, p - p.mean(1, keepdims=True), g - g.mean(1, keepdims=True)
    square_p, square_g = np.vecdot(centred_p, centred_p), np.vecdot(centred_g, centred_g)
    mse = np.vecdot(error, error) / p.shape[1]
    cc = np.vecdot(centred_p, centred_g) / np.sqrt(square_p * square_g)
    nss = some.total(centred_p.ravel()[some.places]) / some.count / np.sqrt(square_p / (p.shape[1] - 1))
    empty = marked.count == 0
    return {
        "mse": mse,
        "mse_empty": np.where(empty, mse, np.nan),
        "cc": np.where(empty, np.nan, np.where(flat_p | flat_g, 0.0, cc)),
        "kld": np.where(empty, np.nan, _kld(p, g, marked, conventions.kld_epsilon)),
        "sim": np.where(empty, np.nan, _sim(p, g, marked, conventions.sim_min_max)),
        "nss": np.where(flat_p & (some.count > 0), 0.0, nss),
        "auc_judd": np.array([_auc_judd(*pair) for pair in zip(predicted, fixated, strict=True)]),
    }


@dataclass(frozen=True)
class _Places:
    """Some pixels of a batch of maps, most often few: sums over them need not see the others.

    Attributes:
        places: Where they are in the flattened batch.
        maps: The map of each.
        count: How many each map has.
    """

    places: Int[np.ndarray, " place"]
    maps: Int[np.ndarray, " place"]
    count: Int[np.ndarray, " batch"]

    @classmethod
    def of(cls, chosen: Chosen) -> "_Places":
        places = np.flatnonzero(chosen)
        count = np.count_nonzero(chosen, axis=1)
        return cls(places, np.repeat(np.arange(len(chosen)), count), count)

    def total(self, values: Float[np.ndarray, " place"]) -> Values:
        """The sum for each map of a value for each place."""
        return np.bincount(self.maps, values, len(self.count)).astype(np.float64)  # of nothing it counts whole numbers

    def shares(self, pixels: Pixels, epsilon: float = 0.0) -> Float[np.ndarray, " place"]:
        """What the pixels have of the sum of their whole map."""
        return pixels.ravel()[self.places] / (pixels.sum(1) + epsilon)[self.maps]


def _is_constant(maps: Pixels) -> Bool[np.ndarray, " batch"]:
    return maps.min(1) == maps.max(1)


def _kld(p: Pixels, g: Pixels, marked: _Places, epsilon: float) -> Values:
    """Where G is 0 the terms are."""
    share_p, share_g = marked.shares(p, epsilon), marked.shares(g, epsilon)
    return marked.total(share_g * np.log(share_g / (share_p + epsilon) + epsilon))


def _sim(p: Pixels, g: Pixels, marked: _Places, min_max: bool) -> Values:
    """Where G is 0 the lesser is; a stretched G is 0 there, too."""
    if min_max:
        p, g = _stretched(p), _stretched(g)
    return marked.total(np.minimum(np.nan_to_num(marked.shares(p)), marked.shares(g)))


def _stretched(maps: Pixels) -> Pixels:
    low, high = maps.min(1, keepdims=True), maps.max(1, keepdims=True)
    return np.where(high > low, (maps - low) / (high - low), maps)


def _auc_judd(values: Float[np.ndarray, " pixel"], fixated: Bool[np.ndarray, " pixel"]) -> float:
    at_fixated = np.sort(values[fixated])
    n, others = len(at_fixated), len(values) - len(at_fixated)
    if n == 0 or others == 0:
        return np.nan
    missed = np.flatnonzero(np.diff(at_fixated, prepend=-1))  # the fixated pixels below each threshold
    rejected = _count_below(values, at_fixated[missed]) - missed
    true = np.concatenate([[0], (n - missed)[::-1], [n]])
    false = np.concatenate([[0], (others - rejected)[::-1], [others]])
    return float(np.trapezoid(true, false)) / (n * others)


def _count_below(
    values: Float[np.ndarray, " pixel"], thresholds: Float[np.ndarray, " threshold"]
) -> Int[np.ndarray, " threshold"]:
    """How many values in [0, 1] are below each of some thresholds, which rise.

    Values are counted in as many cells of equal width as there are values; those in the cells where a threshold is, a
    few, are also sorted. To sort all takes twice as long.
    """
    scale = values.dtype.type(len(values) - 1)
    cells, own = (values * scale).astype(np.intp), (thresholds * scale).astype(np.intp)
    shared = np.zeros(len(values), bool)
    shared[own] = True
    near, counts = np.sort(values[shared[cells]]), np.bincount(cells, minlength=len(values))
    counts[own] = 0
    return np.searchsorted(near, thresholds) + np.cumsum(counts)[own]
