"""The metrics of many heatmaps, all at once and one map at a time: 1,000 of 128 x 128, and a few of RAHF's 512 x 512.

python -m benchmarks.metrics

The loop is NumPy, map by map, as the public code for RichHF-18K has it: one comparison with the whole map for each
threshold of AUC-Judd. It also is the oracle of `tests/rewards/test_saliency.py`.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from rewards.datasets.consolidate import mean_map
from rewards.saliency import RICHHF, Conventions, heatmap_metrics

SIZES = ((1000, 128), (5, 512))
"""How many maps, and pixels a side."""
ROUNDS, TARGET_RATIO = 3, 20

Map = NDArray[np.float64]


def main() -> None:
    """Print the seconds of both and their ratio."""
    torch.set_num_threads(1)
    print(f"Seconds of one core, best of {ROUNDS}; the ratio should be {TARGET_RATIO} or more.")
    for number, side in SIZES:
        predicted, target = make_maps(number, side)
        ours = _seconds(lambda p=predicted, g=target: heatmap_metrics(p, g))
        loop = _seconds(lambda p=predicted, g=target: by_loop(p, g, RICHHF))
        marked = (target > 0).float().mean()
        print(f"{number:5} maps of {side} x {side}, {marked:.1%} of the pixels marked: ", end="")
        print(f"all at once {ours:.2f}, map by map {loop:.2f}, {loop / ours:.1f} x")


def make_maps(number: int, side: int) -> tuple[Float[Tensor, "batch h w"], Float[Tensor, "batch h w"]]:
    """Smooth predictions, and targets of three people who mark none to four places each."""
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.random((number, 1, 8, 8), dtype=np.float32))
    predicted = interpolate(coarse, size=(side, side), mode="bicubic")[:, 0].clamp(0, 1)
    people = [[generator.random((generator.integers(5), 2)) * side for _ in range(3)] for _ in range(number)]
    return predicted, torch.from_numpy(np.stack([mean_map(points, side / 20, side, side) for points in people])).float()


def by_loop(predicted: Tensor, target: Tensor, conventions: Conventions) -> dict[str, list[float]]:
    """Every metric, map by map."""
    rows = [judge(p, g, conventions) for p, g in zip(predicted.double().numpy(), target.double().numpy(), strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def judge(p: Map, g: Map, conventions: Conventions) -> dict[str, float]:
    """All metrics of one map by their formulas."""
    squared, empty = float(((p - g) ** 2).mean()), not g.any()
    fixated = g > conventions.fixated_above
    return {
        "mse": squared,
        "mse_empty": squared if empty else np.nan,
        "cc": np.nan if empty else _cc(p, g),
        "kld": np.nan if empty else _kld(p, g, conventions.kld_epsilon),
        "sim": np.nan if empty else _sim(p, g, conventions.sim_min_max),
        "nss": _nss(p, fixated) if fixated.any() else np.nan,
        "auc_judd": _auc_judd(p, fixated) if fixated.any() and not fixated.all() else np.nan,
    }


def _cc(p: Map, g: Map) -> float:
    return 0.0 if np.ptp(p) == 0 or np.ptp(g) == 0 else float(np.corrcoef(p.ravel(), g.ravel())[0, 1])


def _kld(p: Map, g: Map, epsilon: float) -> float:
    p, g = p / (p.sum() + epsilon), g / (g.sum() + epsilon)
    return float((g * np.log(epsilon + g / (p + epsilon))).sum())


def _sim(p: Map, g: Map, min_max: bool) -> float:
    if min_max:
        p, g = ((m - m.min()) / np.ptp(m) if np.ptp(m) else m for m in (p, g))
    return float(np.minimum(p / (p.sum() or 1.0), g / g.sum()).sum())


def _nss(p: Map, fixated: NDArray[np.bool_]) -> float:
    return 0.0 if np.ptp(p) == 0 else float(((p - p.mean()) / p.std(ddof=1))[fixated].mean())


def _auc_judd(p: Map, fixated: NDArray[np.bool_]) -> float:
    at_fixated, n = p[fixated], fixated.sum()
    curve = [(0.0, 0.0)]
    for threshold in np.sort(at_fixated)[::-1]:
        found = (at_fixated >= threshold).sum()
        curve.append((((p >= threshold).sum() - found) / (p.size - n), found / n))
    false, true = zip(*curve, (1.0, 1.0), strict=True)
    return float(np.trapezoid(true, false))


def _seconds(work: Callable[[], object]) -> float:
    """Of this process: what else the machine does counts less than on the clock."""
    times: list[float] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
