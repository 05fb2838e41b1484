"""What the readouts of scores read of maps, of words and of each other: the formulas, and which networks have them."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.heads import read_chances, read_heat
from rewards.rahf.network import HEATMAPS, SCORES, RahfNetwork
from tests.rewards.test_rahf import PROMPTS, TINY
from tests.rewards.tokenizers_for_tests import tiny_t5

REST: dict[str, Any] = {"heads": "paper", "reads_image": True, "scores_read_rest": True, "mark_token": 7}


def _maps() -> Tensor:
    maps = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    maps[0, 0] = 0
    return maps.requires_grad_()


def test_of_heat_four_ways_and_their_logarithms_are_read() -> None:
    maps = _maps()
    ways = (
        lambda x: x.mean(),
        lambda x: (x.clamp(min=1e-6) ** 0.5).mean(),
        lambda x: (x * x).mean(),
        lambda x: x.max(),
    )
    for image, found in zip(maps, read_heat(maps), strict=True):
        values = torch.stack([way(one) for way, one in itertools.product(ways, image)])
        torch.testing.assert_close(found, torch.cat([values, torch.log(values + 0.001)]))


def test_a_cold_map_gives_a_finite_gradient() -> None:
    maps = _maps()
    read_heat(maps).sum().backward()
    assert maps.grad is not None and (maps.grad[1:] != 0).all() and maps.grad.isfinite().all()


def test_of_chances_the_padding_does_not_count() -> None:
    chances, real = torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[True, True, False]])
    found = read_chances(chances, real)
    torch.testing.assert_close(found[0], torch.tensor([0.3, 0.6, 0.5, torch.tensor(0.9 * 0.5).log()]))
    assert read_chances(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).isfinite().all()


def test_scores_are_those_of_heads_and_readouts_together() -> None:
    torch.manual_seed(0)
    network = RahfNetwork(RahfConfig(**TINY, **REST)).eval()
    critic = Rahf.of(network, tiny_t5())
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    ids, real = critic.tokenize(PROMPTS)
    fused = network.fuse(network.see(pixels), ids, real)
    alone = torch.stack([network.score(fused.features, name) for name in SCORES], dim=1)
    torch.testing.assert_close(critic.score_pixels(pixels, PROMPTS), alone)  # new readouts read nothing
    torch.nn.init.normal_(network.readouts.weight)
    torch.nn.init.normal_(network.readouts.bias)
    for image, prompt in enumerate(PROMPTS):
        features = fused.features[image]
        maps = torch.stack([network.heatmap(features[None], name) for name in HEATMAPS], dim=1)
        words, _ = critic.tokenize([prompt])
        one = network.fuse(network.see(pixels[image : image + 1]), words, torch.ones_like(words, dtype=torch.bool))
        chances = []
        for place in range(words.shape[1]):  # each after those before it, as when it writes
            before = torch.cat([torch.zeros(1, 1, dtype=torch.long), words[:, :place]], dim=1)
            chances.append(network.next_token(one, before)[0].softmax(-1)[0, 7])
        marks = read_chances(torch.stack(chances)[None], torch.ones(1, len(chances), dtype=torch.bool))
        logits = torch.logit(alone[image])
        read = torch.cat([features.mean((1, 2)), read_heat(maps)[0], logits, marks[0]])
        expected = (logits + network.readouts.weight @ read + network.readouts.bias).sigmoid()
        torch.testing.assert_close(critic.score_pixels(pixels, PROMPTS)[image], expected, atol=1e-4, rtol=1e-4)


def test_one_map_at_a_time_cannot_be_read_by_scores() -> None:
    with pytest.raises(ValueError, match="scores_read_rest needs all maps in one pass"):
        RahfNetwork(RahfConfig(**TINY, prompted=True, scores_read_rest=True))
