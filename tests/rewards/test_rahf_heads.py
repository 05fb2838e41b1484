"""Score heads that read the maps: the formula, and which gradients they let through."""

import itertools

import pytest
import torch
from torch import Tensor

from rewards.rahf.config import RahfConfig
from rewards.rahf.heads import HeatReadingScoreHead, make_score_head
from rewards.rahf.network import RahfNetwork
from tests.rewards.test_rahf import TINY


def _head() -> HeatReadingScoreHead:
    torch.manual_seed(0)
    return HeatReadingScoreHead(make_score_head("paper", 5, 16, (4,), (6,)), 5, maps=2)


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(3, 2, 8, 8, generator=generator)
    maps[0, 0] = 0
    return torch.randn(3, 5, 4, 4, generator=generator), maps.requires_grad_()


def test_a_new_one_is_the_head_alone() -> None:
    head, (features, maps) = _head(), _inputs()
    torch.testing.assert_close(head(features, maps), head.head(features))


def test_the_logit_reads_mean_features_and_how_hot_the_maps_are() -> None:
    head, (features, maps) = _head(), _inputs()
    torch.nn.init.normal_(head.readout.weight)
    alone = torch.logit(head.head(features))
    weights = head.readout.weight[0]
    for image in range(3):
        logit = alone[image]
        for channel in range(5):
            logit = logit + weights[channel] * features[image, channel].mean()
        ways = (
            lambda x: x.mean(),
            lambda x: (x.clamp(min=1e-6) ** 0.5).mean(),
            lambda x: (x * x).mean(),
            lambda x: x.max(),
        )
        for index, (way, one) in enumerate(itertools.product(ways, range(2))):
            heat = way(maps[image, one])
            logit = logit + weights[5 + index] * heat + weights[13 + index] * torch.log(heat + 0.001)
        torch.testing.assert_close(head(features, maps)[image], logit.sigmoid(), atol=1e-5, rtol=1e-5)


def test_a_score_bends_no_map_while_it_trains() -> None:
    head, (features, maps) = _head(), _inputs()
    torch.nn.init.ones_(head.readout.weight)
    head.train()(features, maps).sum().backward()
    assert maps.grad is None
    head.eval()(features, maps).sum().backward()
    assert maps.grad is not None and (maps.grad[1:] != 0).all()
    assert maps.grad.isfinite().all()  # one of them is cold all over


def test_one_map_at_a_time_cannot_be_read_by_scores() -> None:
    with pytest.raises(ValueError, match="scores_read_heat needs all maps in one pass"):
        RahfNetwork(RahfConfig(**TINY, prompted=True, scores_read_heat=True))
