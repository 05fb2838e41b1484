"""Heatmap metrics against the formulas of `benchmarks.metrics`, one map at a time, and against pairs of pixels."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.metrics import by_loop, make_maps
from rewards.saliency import HEATMAP_METRICS, MIT, RICHHF, Conventions, heatmap_metrics


def _awkward(side: int) -> Tensor:
    """Empty, full, constant, one pixel (weak and strong), one other pixel, all pixels but one, and a ramp."""
    empty, full = torch.zeros(side, side), torch.ones(side, side)
    weak, strong, corner, hole = empty.clone(), empty.clone(), empty.clone(), full.clone()
    weak[2, 3], strong[2, 3], corner[-1, -1], hole[1, 1] = 1e-4, 1, 1, 0
    ramp = torch.arange(side * side).reshape(side, side) / side**2
    return torch.stack([empty, full, 0.3 * full, weak, strong, corner, hole, ramp])


def _random_maps(number: int, side: int) -> tuple[Tensor, Tensor]:
    """Random pairs, every third of few levels with ties; and all pairs of awkward maps and two random ones."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, number, side, side, generator=generator)
    maps[1] *= torch.rand(number, side, side, generator=generator) < torch.rand(number, 1, 1, generator=generator)
    maps[:, ::3] = (4 * maps[:, ::3]).round() / 4
    special = torch.cat([_awkward(side), maps[0, 1:3]])
    return (
        torch.cat([maps[0], special.repeat_interleave(len(special), 0)]),
        torch.cat([maps[1], special.repeat(len(special), 1, 1)]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conventions", [RICHHF, MIT, Conventions(fixated_above=0.5)], ids=["richhf", "mit", "above"])
def test_all_metrics_equal_their_formulas(conventions: Conventions, dtype: torch.dtype) -> None:
    predicted, target = (maps.to(dtype) for maps in _random_maps(1000, 10))
    found = heatmap_metrics(predicted, target, conventions)
    oracle = by_loop(predicted, target, conventions)
    assert tuple(found) == HEATMAP_METRICS
    for name in HEATMAP_METRICS:
        np.testing.assert_allclose(found[name], oracle[name], rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.isfinite(oracle[name]).sum() > 9


def test_maps_of_the_real_kind_equal_their_formulas_in_blocks() -> None:
    predicted, target = make_maps(30, 80)
    found, oracle = heatmap_metrics(predicted, target), by_loop(predicted, target, RICHHF)
    for name in HEATMAP_METRICS:
        np.testing.assert_allclose(found[name], oracle[name], rtol=1e-6, atol=1e-6)


def _pairs(predicted: Tensor, target: Tensor) -> list[float]:
    """For each map the share of pairs of a fixated and another pixel in which the former has more; ties count half."""
    shares: list[float] = []
    for p, g in zip(predicted, target, strict=True):
        more, other = p[g > 0][:, None], p[g == 0][None]
        shares.append(((more > other).double() + (more == other).double() / 2).mean().item())
    return shares


def test_auc_judd_is_the_share_of_ordered_pairs_where_every_value_occurs_at_a_fixated_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 6, (50, 9, 9), generator=generator) / 5
    target = (torch.rand(50, 9, 9, generator=generator) < 0.7).float()
    assert all(set(p[g > 0].tolist()) == set(p.flatten().tolist()) for p, g in zip(predicted, target, strict=True))
    found = heatmap_metrics(predicted, target)["auc_judd"]
    assert found.tolist() == pytest.approx(_pairs(predicted, target), abs=1e-12)


def test_without_ties_auc_judd_exceeds_the_share_of_pairs_by_half_a_step_at_most() -> None:
    """Straight lines between the thresholds cut the corners of the staircase that all pixels would give."""
    generator = torch.Generator().manual_seed(1)
    predicted = torch.randperm(50 * 256, generator=generator).reshape(50, 16, 16) / (50 * 256)
    target = (torch.rand(50, 16, 16, generator=generator) < 0.1).float()
    gap = heatmap_metrics(predicted, target)["auc_judd"].numpy() - _pairs(predicted, target)
    assert (gap > 0).all()
    assert (gap <= 0.5 / target.sum((1, 2)).double().numpy() + 1e-12).all()


def _one(predicted: Tensor, target: Tensor, conventions: Conventions = RICHHF) -> dict[str, float]:
    return {name: value.item() for name, value in heatmap_metrics(predicted[None], target[None], conventions).items()}


def test_a_perfect_prediction() -> None:
    target = torch.zeros(8, 8)
    target[2:4, 2:4] = 1
    found = _one(target, target)
    assert (found["mse"], found["cc"], found["sim"]) == pytest.approx((0, 1, 1))
    assert found["kld"] == pytest.approx(0, abs=1e-6)
    assert found["auc_judd"] == 1
    assert found["nss"] == pytest.approx((1 - 4 / 64) / target.std().item())


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_a_constant_prediction_says_nothing(level: float) -> None:
    target = torch.zeros(8, 8)
    target[0, :4] = torch.tensor([0.25, 0.5, 0.75, 1.0])
    found = _one(torch.full((8, 8), level), target)
    assert (found["cc"], found["nss"], found["auc_judd"]) == (0, 0, 0.5)
    assert found["sim"] == pytest.approx(4 / 64 if level else 0)
    assert (found["kld"] < 4) == bool(level)


def test_an_empty_target_has_an_mse_only() -> None:
    found = _one(torch.full((4, 4), 0.5), torch.zeros(4, 4))
    assert (found["mse"], found["mse_empty"]) == (0.25, 0.25)
    assert all(math.isnan(found[name]) for name in HEATMAP_METRICS if not name.startswith("mse"))


def test_a_map_of_one_pixel() -> None:
    found = _one(torch.tensor([[0.5]]), torch.tensor([[1.0]]))
    assert (found["mse"], found["cc"], found["nss"]) == (0.25, 0, 0)
    assert found["sim"] == pytest.approx(1)
    assert math.isnan(found["auc_judd"])


def test_order_alone_counts_for_auc_judd() -> None:
    predicted, target = make_maps(8, 48)
    squeezed = predicted.double() ** 3 / 9
    found, expected = (heatmap_metrics(maps, target)["auc_judd"] for maps in (squeezed, predicted))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_minus_zero_is_zero() -> None:
    predicted, target = torch.tensor([[-0.0, 0.0, 0.5, -0.0]]), torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert _one(predicted, target)["auc_judd"] == _one(predicted.abs(), target)["auc_judd"] == 0.75


def test_half_precision_is_judged_as_its_own_values() -> None:
    predicted, target = make_maps(8, 48)
    half = predicted.bfloat16()
    found, expected = heatmap_metrics(half, target), heatmap_metrics(half.float(), target)
    for name in HEATMAP_METRICS:
        torch.testing.assert_close(found[name], expected[name], equal_nan=True)


def test_the_share_of_annotators_that_makes_a_fixation_is_selectable() -> None:
    target = torch.tensor([[1 / 3, 1.0, 0.0, 0.0]])
    predicted = torch.tensor([[0.0, 0.9, 0.5, 0.4]])
    assert _one(predicted, target, Conventions(fixated_above=0.5))["auc_judd"] == 1
    assert _one(predicted, target)["auc_judd"] == 0.75
    undefined = _one(predicted, target / 4, Conventions(fixated_above=0.5))
    assert math.isnan(undefined["auc_judd"]) and math.isnan(undefined["nss"])
    assert not math.isnan(undefined["cc"])


def test_stretching_raises_sim_of_a_dense_prediction() -> None:
    target = torch.zeros(8, 8)
    target[2:4, 2:4] = 1
    dense = 0.5 + 0.4 * target
    assert _one(dense, target)["sim"] < 0.15
    assert _one(dense, target, MIT)["sim"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 5), r"shape \(2, 4, 4\) came with targets of shape \(2, 4, 5\)"),
        (torch.full((1, 2, 2), 255.0), torch.zeros(1, 2, 2), "predicted maps must be one or more in"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -0.1), "target maps must be one or more in"),
        (torch.full((1, 2, 2), math.nan), torch.zeros(1, 2, 2), "predicted maps .* without NaN"),
        (torch.zeros(0, 2, 2), torch.zeros(0, 2, 2), "predicted maps must be one or more"),
    ],
    ids=["shapes", "8-bit", "negative", "nan", "none"],
)
def test_what_is_no_heatmap_is_refused(
    predicted: Tensor, target: Tensor, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        heatmap_metrics(predicted, target)
