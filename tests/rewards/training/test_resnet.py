"""The loss of the ResNet critic equals its formula, and by it a tiny network learns maps and scores by heart."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.resnet import ResnetConfig, ResnetNetwork
from rewards.training.rahf import LossWeights, RahfBatch, kld
from rewards.training.resnet import ResnetLoss
from tests.rewards.tiny_resnet import TINY

NONE = torch.Generator()


def _network() -> ResnetNetwork:
    torch.manual_seed(0)
    return ResnetNetwork(ResnetConfig(**TINY))


def _batch(count: int, maps: Tensor | None = None) -> RahfBatch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1
    drawn = torch.rand(count, 2, 32, 32, generator=generator)
    scores = torch.rand(count, 4, generator=generator)
    return RahfBatch(pixels, ["a star"] * count, ["a_0 star"] * count, scores, drawn if maps is None else maps)


def test_the_loss_is_the_weighted_sum_of_what_the_network_gets_wrong() -> None:
    network, batch = _network(), _batch(3)
    weights = LossWeights(heatmap=2.0, score=3.0, words=100.0, kld=0.5, lift=1.0)
    drawn, scored = [], []
    for index in range(3):
        features = network.see(batch.pixels[index : index + 1])
        drawn.append(network.draw(features)[0])
        scored.append(network.score(features)[0])
    maps, targets = torch.stack(drawn), batch.heatmaps
    lifted = (targets + 1 / 255) / (targets + 1 / 255).mean()
    expected = 2.0 * (lifted * (maps - targets) ** 2).mean()
    expected = expected + 3.0 * ((torch.stack(scored) - batch.scores) ** 2).mean() + 0.5 * kld(maps, targets)
    torch.testing.assert_close(ResnetLoss(weights)(network, batch, NONE), expected)


def test_the_parts_are_those_that_count() -> None:
    network, batch = _network(), _batch(2)
    assert list(ResnetLoss(LossWeights()).parts(network, batch, NONE)) == ["heatmap", "score"]
    assert list(ResnetLoss(LossWeights(kld=1.0)).parts(network, batch, NONE)) == ["heatmap", "score", "kld"]


def test_a_map_of_another_size_is_a_target_too() -> None:
    """It is resized as Pillow resizes a picture of floats."""
    network, loss = _network(), ResnetLoss(LossWeights())
    large = torch.rand(2, 2, 50, 50, generator=torch.Generator().manual_seed(2))
    pictures = [Image.fromarray(one.numpy()).resize((32, 32), Image.Resampling.BILINEAR) for one in large.flatten(0, 1)]
    small = torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).view(2, 2, 32, 32)
    torch.testing.assert_close(loss(network, _batch(2, large), NONE), loss(network, _batch(2, small), NONE))


def test_every_parameter_learns() -> None:
    network = _network()
    ResnetLoss(LossWeights())(network, _batch(2), NONE).backward()
    still = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not still


def test_a_tiny_network_learns_eight_images_by_heart() -> None:
    maps = torch.zeros(8, 2, 32, 32)
    for index in range(8):
        top = 4 * (index // 2)
        maps[index, index % 2, top : top + 12, 8:24] = 1.0
    batch, network, loss = _batch(8, maps), _network(), ResnetLoss(LossWeights(heatmap=1.0, kld=0.05))
    colours = torch.cat([maps, maps[:, :1]], dim=1)  # what is wrong can be seen
    batch = replace(batch, pixels=0.3 * batch.pixels + colours)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(network, batch, NONE).backward()
        optimizer.step()
    parts = loss.parts(network, batch, NONE)
    # Without a look at the images nothing is better than the mean of what should be said of them.
    assert parts["heatmap"] < 0.3 * (maps - maps.mean(0)).square().mean()
    assert parts["score"] < 0.05 * (batch.scores - batch.scores.mean(0)).square().mean()


def test_a_training_from_saved_parameters_goes_on_as_if_never_cut() -> None:
    """Nothing but parameters and the optimizer's state changes in training, unlike with BatchNorm."""
    whole, cut, batch = _network(), _network(), _batch(4)
    _train(whole, batch, steps=3)
    _train(cut, batch, steps=3)
    resumed = ResnetNetwork(ResnetConfig(**TINY))
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            parameter.copy_(cut.get_parameter(name))
    _train(whole, batch, steps=3)
    _train(resumed, batch, steps=3)
    assert torch.equal(_scores(whole, batch), _scores(resumed, batch))
    assert not torch.equal(_scores(whole, batch), _scores(cut, batch))


def _train(network: ResnetNetwork, batch: RahfBatch, steps: int) -> None:
    """An optimizer without a state of its own."""
    loss, optimizer = ResnetLoss(LossWeights()), torch.optim.SGD(network.train().parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, batch, NONE).backward()
        optimizer.step()


def _scores(network: ResnetNetwork, batch: RahfBatch) -> Tensor:
    return network.eval().score(network.see(batch.pixels))
