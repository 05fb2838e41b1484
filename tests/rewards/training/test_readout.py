"""Readouts that are fitted after a training: the least squared error, and nothing else changed."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from rewards.rahf.critic import Rahf
from rewards.rahf.network import HEATMAPS, RahfNetwork
from rewards.training.rahf import score_error
from rewards.training.readout import PENALTY, fit_readout, fit_readouts, with_readouts
from tests.rewards.training.test_rahf import make_batch, make_critic

REST = {"heads": "paper", "reads_image": True, "scores_read_rest": True, "mark_token": 7}


def _data(count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 0.1, 5.0]) + torch.tensor([2.0, 0.0, -3.0])
    logits = torch.randn(count, generator=generator)
    true = pooled @ torch.tensor([1.0, -4.0, 0.2]) - 1.0
    return pooled, logits, (logits + true).sigmoid()


def test_what_made_the_scores_is_found_again() -> None:
    weights, bias = fit_readout(*_data())
    torch.testing.assert_close(weights, torch.tensor([1.0, -4.0, 0.2], dtype=torch.float64), atol=0.02, rtol=0.02)
    torch.testing.assert_close(bias, torch.tensor(-1.0, dtype=torch.float64), atol=0.05, rtol=0)


def test_the_error_is_least() -> None:
    """Another search, from another start, comes to the same."""
    pooled, logits, scores = (one.double() for one in _data())
    scores = (scores + 0.2 * torch.randn(len(scores), generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    deviation = pooled.std(0)

    def error(values: object) -> float:
        w = torch.as_tensor(values, dtype=torch.float64)
        guessed = (logits + pooled @ w[:3] + w[3]).sigmoid()
        return float((guessed - scores).square().mean() + PENALTY * (w[:3] * deviation).square().sum())

    other = minimize(error, [0.3, 0.3, 0.3, 0.3], method="BFGS", options={"gtol": 1e-9})
    weights, bias = fit_readout(pooled, logits, scores)
    assert error([*weights.tolist(), bias.item()]) <= other.fun + 1e-9


def test_scores_come_closer_and_maps_stay() -> None:
    critic, batch = make_critic(**REST), make_batch()
    network = critic.network
    features = network.fuse(network.see(batch.pixels), *critic.tokenize(batch.prompts)).features
    maps = [network.heatmap(features, name) for name in HEATMAPS]
    before = score_error(critic.score_pixels(batch.pixels, batch.prompts), batch.scores)
    fit_readouts(network, [batch, batch], critic.tokenize)
    first = critic.score_pixels(batch.pixels, batch.prompts)
    assert score_error(first, batch.scores) < 0.2 * before
    fit_readouts(network, [batch, batch], critic.tokenize)
    torch.testing.assert_close(critic.score_pixels(batch.pixels, batch.prompts), first)
    for name, old in zip(HEATMAPS, maps, strict=True):
        torch.testing.assert_close(network.heatmap(features, name), old, atol=0, rtol=0)


def test_readouts_read_nothing_before_they_are_fitted() -> None:
    critic, batch = make_critic(heads="paper", reads_image=True), make_batch()
    reading = Rahf.of(with_readouts(critic.network, 7), critic.tokenizer)
    images = batch.pixels / 2 + 0.5
    torch.testing.assert_close(reading(images, batch.prompts), critic(images, batch.prompts))
    assert reading.network.config.scores_read_rest


def test_a_score_that_nobody_gave_is_left_out() -> None:
    critic, batch = make_critic(**REST), make_batch()
    scores = batch.scores.clone()
    scores[0, 1] = torch.nan
    fit_readouts(critic.network, [replace(batch, scores=scores)], critic.tokenize)
    assert all(parameter.isfinite().all() for parameter in critic.network.parameters())


def test_a_network_without_readouts_is_refused() -> None:
    critic, batch = make_critic(), make_batch()
    assert isinstance(critic.network, RahfNetwork)
    with pytest.raises(ValueError, match="needs scores_read_rest"):
        fit_readouts(critic.network, [batch], critic.tokenize)


def test_a_score_of_one_picture_is_no_fit() -> None:
    pooled, logits, scores = _data(1)
    with pytest.raises(ValueError, match="given to 1 pictures"):
        fit_readout(pooled, logits, scores)
