"""The loss of the ResNet critic equals its formula, and by it a tiny network learns maps and scores by heart."""

import torch
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
    """One of twice the size, with every pixel doubled in both directions, says the same away from the borders."""
    blocks = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    small, large = (blocks.repeat_interleave(n, -1).repeat_interleave(n, -2) for n in (8, 16))
    loss, network = ResnetLoss(LossWeights()), _network()
    small_loss, large_loss = (loss(network, _batch(2, maps), NONE) for maps in (small, large))
    torch.testing.assert_close(small_loss, large_loss, rtol=0.05, atol=0)


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
        maps[index, index % 2, 4 * (index // 2) : 4 * (index // 2) + 12, 8:24] = 1.0
    network, batch, loss = _network(), _batch(8, maps), ResnetLoss(LossWeights(heatmap=1.0))
    before = loss.parts(network, batch, NONE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(network, batch, NONE).backward()
        optimizer.step()
    after = loss.parts(network, batch, NONE)
    assert after["score"] < 0.1 * before["score"]
    assert after["heatmap"] < 0.2 * before["heatmap"]
    # A network that does not look at the image can do no better than the mean of the maps.
    assert after["heatmap"] < 0.5 * (maps - maps.mean(0)).square().mean()


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
