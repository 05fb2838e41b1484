"""The losses of RAHF equal their formulas, whatever the form of the network, and a tiny network learns by them."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import mse_loss

from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.network import HEATMAPS, SCORES, RahfNetwork
from rewards.rahf.words import mark_words, task_prompt
from rewards.training.rahf import LossWeights, RahfBatch, RahfLoss, caption_loss, heatmap_error, kld, written_loss
from tests.rewards.test_rahf import FORMS, TINY
from tests.rewards.tokenizers_for_tests import tiny_t5

PROMPTS = ("a red circle", "two blue squares", "a star")


def make_critic(**options: Any) -> Rahf:
    torch.manual_seed(0)
    return Rahf.of(RahfNetwork(RahfConfig(**TINY, **options)), tiny_t5())


def make_batch(size: int = 32) -> RahfBatch:
    generator = torch.Generator().manual_seed(1)
    marked = [mark_words(prompt.split(), [True] + [False] * prompt.count(" ")) for prompt in PROMPTS]
    return RahfBatch(
        torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1,
        PROMPTS,
        marked,
        torch.rand(3, 4, generator=generator),
        torch.rand(3, 2, size, size, generator=generator),
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_weighted_sum_of_what_the_network_gets_wrong(form: str) -> None:
    critic, batch = make_critic(**FORMS[form]), make_batch()
    loss = RahfLoss(critic.tokenize, LossWeights(heatmap=2.0, score=3.0, words=0.5))
    network, config = critic.network, critic.network.config
    found = loss(network, batch, torch.Generator().manual_seed(5))

    asked = torch.Generator().manual_seed(5)
    score_of, map_of = (torch.randint(n, (3,), generator=asked) for n in (len(SCORES), len(HEATMAPS)))
    scores, maps, texts = [], [], []
    for i, prompt in enumerate(PROMPTS):
        seen = network.see(batch.pixels[i : i + 1])
        for j, name in enumerate(SCORES):
            if not config.prompted or score_of[i] == j:
                asking = task_prompt("SCORE", name, prompt) if config.prompted else prompt
                features = network.fuse(seen, *critic.tokenize([asking])).features
                value = network.score(features, name)
                scores.append((value - batch.scores[i, j]) ** 2)
        for j, name in enumerate(HEATMAPS):
            if not config.prompted or map_of[i] == j:
                asking = task_prompt("HEATMAP", name, prompt) if config.prompted else prompt
                drawn = network.heatmap(network.fuse(seen, *critic.tokenize([asking])).features, name)
                maps.append((drawn[0] - batch.heatmaps[i, j]).square().mean())
        ids, real = critic.tokenize([batch.marked[i]])
        fused = network.fuse(seen, *critic.tokenize([prompt]))
        output = network.t5(encoder_outputs=(fused.memory,), attention_mask=fused.mask.long(), labels=ids)
        texts.append((output.loss * real.sum(), real.sum()))
    words = sum(value for value, _ in texts) / sum(count for _, count in texts)
    expected = 2.0 * torch.stack(maps).mean() + 3.0 * torch.stack(scores).mean() + 0.5 * words
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_maps_that_nobody_drew_are_left_out(form: str) -> None:
    critic, batch = make_critic(**FORMS[form]), make_batch()
    batch.heatmaps[1, 0] = torch.nan
    loss = RahfLoss(critic.tokenize, LossWeights(kld=1.0))
    found = loss.parts(critic.network, batch, torch.Generator().manual_seed(5))
    batch.heatmaps[1] = torch.nan
    again = loss.parts(critic.network, batch, torch.Generator().manual_seed(5))
    assert found == again
    whole, maps = loss.parts(critic.network, make_batch(), torch.Generator().manual_seed(5)), []
    torch.testing.assert_close(
        [found[name] for name in ("score", "words")], [whole[name] for name in ("score", "words")]
    )
    asked = torch.Generator().manual_seed(5)
    _, map_of = (torch.randint(n, (3,), generator=asked) for n in (len(SCORES), len(HEATMAPS)))
    for row in (0, 2):
        for number, name in enumerate(HEATMAPS):
            if not critic.network.config.prompted or map_of[row] == number:
                asking = task_prompt("HEATMAP", name, PROMPTS[row]) if critic.network.config.prompted else PROMPTS[row]
                seen = critic.network.see(batch.pixels[row : row + 1])
                drawn = critic.network.heatmap(critic.network.fuse(seen, *critic.tokenize([asking])).features, name)
                maps.append((drawn[0] - batch.heatmaps[row, number]).square().mean())
    torch.testing.assert_close(found["heatmap"], torch.stack(maps).mean())


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_maps_teaches_the_rest(form: str) -> None:
    critic, batch = make_critic(**FORMS[form]), make_batch()
    batch.heatmaps[:] = torch.nan
    parts = RahfLoss(critic.tokenize, LossWeights(kld=1.0)).parts(critic.network, batch, torch.Generator())
    assert parts["heatmap"] == 0
    assert parts["kld"] == 0
    torch.stack(list(parts.values())).sum().backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in critic.network.parameters())


def test_a_map_of_another_size_is_a_target_too() -> None:
    critic = make_critic()
    parts = RahfLoss(critic.tokenize, LossWeights()).parts(critic.network, make_batch(size=50), torch.Generator())
    assert all(value.isfinite() for value in parts.values())


def test_lifted_pixels_count_by_their_heat() -> None:
    generator = torch.Generator().manual_seed(2)
    maps, targets = torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)
    torch.testing.assert_close(heatmap_error(maps, targets), mse_loss(maps, targets))
    weights = (targets + 1 / 255).numpy()
    expected = (weights / weights.mean() * ((maps - targets) ** 2).numpy()).mean()
    torch.testing.assert_close(heatmap_error(maps, targets, lift=1.0).item(), float(expected), rtol=1e-5, atol=1e-7)


def test_a_map_of_zeros_costs_more_where_hot_pixels_are_lifted() -> None:
    targets = torch.zeros(1, 16, 16)
    targets[0, 4, 4] = 1.0
    nothing = torch.zeros_like(targets)
    assert heatmap_error(nothing, targets, lift=1.0) > 50 * heatmap_error(nothing, targets)


def test_kld_is_the_mean_relative_entropy_of_maps_with_heat() -> None:
    generator = np.random.default_rng(3)
    maps, targets = generator.random((3, 8, 8)) + 0.01, generator.random((3, 8, 8)) + 0.01
    targets[1] = 0.0
    expected = np.mean([entropy(targets[i].ravel(), maps[i].ravel()) for i in (0, 2)])
    found = kld(torch.from_numpy(maps), torch.from_numpy(targets))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-4)
    assert kld(torch.from_numpy(maps), torch.zeros(3, 8, 8).double()) == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_tiny_network_learns_what_people_said(form: str) -> None:
    critic, batch = make_critic(**FORMS[form]), make_batch()
    loss = RahfLoss(critic.tokenize, LossWeights(kld=0.01))
    optimizer = torch.optim.AdamW(critic.network.parameters(), lr=5e-3)
    values = []
    for step in range(80):
        value = loss(critic.network, batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-10:]) < 0.35 * np.mean(values[:5])


def test_captions_are_learned_from_the_image_alone() -> None:
    critic, batch = make_critic(), make_batch()  # its decoder does not see the image otherwise
    loss, none = caption_loss(critic.tokenize), torch.Generator()
    swapped = RahfBatch(batch.pixels.flip(0), batch.prompts, batch.marked, batch.scores, batch.heatmaps)
    optimizer = torch.optim.AdamW(critic.network.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(critic.network, batch, none).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(critic.network, swapped, none) > 2 * loss(critic.network, batch, none)


def test_padding_of_the_target_does_not_count() -> None:
    critic, batch = make_critic(), make_batch()
    fused = critic.network.fuse(critic.network.see(batch.pixels), *critic.tokenize(PROMPTS))
    ids, real = critic.tokenize(batch.marked)
    longer = torch.cat([ids, torch.full((3, 4), 7)], 1), torch.cat([real, torch.zeros(3, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(
        written_loss(critic.network, fused, (ids, real)), written_loss(critic.network, fused, longer)
    )


@pytest.mark.parametrize("form", FORMS)
def test_recomputed_activations_give_the_same_gradients(form: str) -> None:
    gradients = []
    for recompute in (False, True):
        critic, batch = make_critic(**FORMS[form]), make_batch()
        if recompute:
            critic.network.enable_gradient_checkpointing()
        critic.network.train()
        RahfLoss(critic.tokenize, LossWeights())(critic.network, batch, torch.Generator().manual_seed(3)).backward()
        gradients.append([parameter.grad for parameter in critic.network.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)
