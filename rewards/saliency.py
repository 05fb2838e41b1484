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
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import vecdot

Maps: TypeAlias = Float[Tensor, "batch h w"]
Pixels: TypeAlias = Float[Tensor, "batch pixel"]
Values: TypeAlias = Float[Tensor, " batch"]

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


def heatmap_metrics(predicted: Maps, target: Maps, conventions: Conventions = RICHHF) -> dict[str, Values]:
    """Every metric of `HEATMAP_METRICS` for each map, in float64; see the head of this module.

    Raises:
        ValueError: Shapes that differ, no maps, or values outside [0, 1].
    """
    _check(predicted, target)
    p, g = predicted.flatten(1), target.flatten(1)
    size = max(1, BLOCK_PIXELS // p.shape[1])
    blocks = [_judge(*block, conventions) for block in zip(p.split(size), g.split(size), strict=True)]
    return {name: torch.cat([block[name] for block in blocks]) for name in HEATMAP_METRICS}


def _check(predicted: Maps, target: Maps) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"Predicted maps of shape {tuple(predicted.shape)} came with targets of shape {tuple(target.shape)}; both "
            "must have the same. Resize the predictions to the targets."
        )
    for name, maps in (("predicted", predicted), ("target", target)):
        if maps.numel() == 0 or not (maps.amin() >= 0 and maps.amax() <= 1):
            raise ValueError(f"The {name} maps must be one or more in [0, 1] without NaN; divide 8-bit maps by 255.")


def _judge(predicted: Pixels, target: Pixels, conventions: Conventions) -> dict[str, Values]:
    p, g = predicted.double(), target.double()
    empty, flat_p, flat_g = g.amax(1) == 0, _is_constant(p), _is_constant(g)
    fixated = target > conventions.fixated_above
    error, centred_p, centred_g = p - g, p - p.mean(1, keepdim=True), g - g.mean(1, keepdim=True)
    square_p, square_g = vecdot(centred_p, centred_p), vecdot(centred_g, centred_g)
    mse = vecdot(error, error) / p.shape[1]
    cc = vecdot(centred_p, centred_g) / (square_p * square_g).sqrt()
    nss = vecdot(centred_p, fixated.double()) / fixated.sum(1) / (square_p / (p.shape[1] - 1)).sqrt()
    return {
        "mse": mse,
        "mse_empty": mse.masked_fill(~empty, torch.nan),
        "cc": cc.masked_fill(flat_p | flat_g, 0.0).masked_fill(empty, torch.nan),
        "kld": _kld(p, g, conventions.kld_epsilon).masked_fill(empty, torch.nan),
        "sim": _sim(p, g, conventions.sim_min_max).masked_fill(empty, torch.nan),
        "nss": nss.masked_fill(flat_p & fixated.any(1), 0.0),
        "auc_judd": _auc_judd(predicted, fixated),
    }


def _is_constant(maps: Pixels) -> Bool[Tensor, " batch"]:
    return maps.amin(1) == maps.amax(1)


def _kld(p: Pixels, g: Pixels, epsilon: float) -> Values:
    """Only where G is not 0: the other terms are, and most pixels are such."""
    marked = g.flatten().nonzero()[:, 0]
    maps, none = marked // g.shape[1], g.new_zeros(len(g))
    p, g = (values.flatten()[marked] / (values.sum(1) + epsilon)[maps] for values in (p, g))
    return none.index_add(0, maps, g * (g / (p + epsilon) + epsilon).log())


def _sim(p: Pixels, g: Pixels, min_max: bool) -> Values:
    if min_max:
        p, g = _stretched(p), _stretched(g)
    return torch.minimum((p / p.sum(1, keepdim=True)).nan_to_num(0.0), g / g.sum(1, keepdim=True)).sum(1)


def _stretched(maps: Pixels) -> Pixels:
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), maps)


def _auc_judd(predicted: Pixels, fixated: Bool[Tensor, "batch pixel"]) -> Values:
    """One sort a map. NumPy's sort of whole numbers is several times faster than torch's, which also moves places.

    Points of the curves are kept in flat arrays, map by map and by rising threshold; each map ends with (0, 0).
    """
    keys = _sorted_keys(predicted, fixated)
    flat = np.flatnonzero(keys & 1 == 0)
    maps, places = np.divmod(flat, keys.shape[1])
    n = fixated.sum(1).cpu().numpy()
    rank = np.arange(len(maps)) - (np.cumsum(n + 1) - (n + 1))[maps]
    is_new = np.diff(keys.ravel()[flat], prepend=-1) != 0
    maps, rank, places = maps[is_new], rank[is_new], places[is_new]
    found, rejected = n[maps] - rank, places - rank  # fixated at or above the threshold; not fixated below it
    step = np.where(rank == 0, rejected, np.diff(rejected, prepend=0))
    height = np.where(rank == 0, found, (found + np.roll(found, 1)) / 2)
    area = torch.from_numpy(np.bincount(maps, step * height, len(n)))
    count = torch.from_numpy(n)
    return (area / (count * (fixated.shape[1] - count))).to(predicted.device)


def _sorted_keys(predicted: Pixels, fixated: Bool[Tensor, "batch pixel"]) -> np.ndarray:
    """Whole numbers in the order of P, the last bit 0 at fixated pixels (which so come first among equals).

    The bits of floats that are not negative are in their order (the shift makes 0 of -0). Behind each map stands one
    more, highest and even.
    """
    values = predicted.to(torch.promote_types(predicted.dtype, torch.float32)).cpu().numpy()
    bits = values.view(f"i{values.itemsize}")
    keys = np.empty((len(bits), bits.shape[1] + 1), bits.dtype)
    np.left_shift(bits, 1, out=keys[:, :-1])
    keys[:, :-1] |= ~fixated.cpu().numpy()
    keys[:, -1] = np.iinfo(keys.dtype).max - 1
    keys.sort(axis=1)
    return keys
