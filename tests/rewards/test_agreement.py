"""How far a reward agrees with people: its columns are those of the metrics, whatever the batches."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.agreement import fit_map, judge, people, selection
from rewards.base import Critic, Critique, Images, Reward
from rewards.metrics import plcc
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.saliency import heatmap_metrics
from tests.rewards.training.test_feedback import rows

CPU = torch.device("cpu")


class Red(Reward):
    """How red an image is."""

    dimensions = ("overall",)
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
        return image

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "batch dimension"]:
        return torch.stack([image[0].mean() for image in images])[:, None]


class Seer(Critic, Red):
    """Draws the red channel, and calls the first word misaligned."""

    heatmaps = HEATMAPS

    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        red = torch.stack([image[0, ::2, ::2] for image in images])
        words = [prompt.replace(",", "").split() for prompt in prompts]
        missed = [[True, *[False] * (len(row) - 1)] for row in words]
        return Critique(self(images, prompts), dict.fromkeys(HEATMAPS, red), words, missed)


def test_a_critic_is_judged_row_by_row() -> None:
    data = rows(7)
    found = judge(Seer(), data, 3, CPU)
    whole = judge(Seer(), data, 100, CPU)
    np.testing.assert_array_equal(found.scores["overall"], whole.scores["overall"])
    assert found.words is not None and found.words.tolist() == [[0, 1, 1]] * 7
    for name in HEATMAPS:
        drawn = [fit_map(row.image()[0, ::2, ::2], (32, 32)) for row in data]
        expected = heatmap_metrics(torch.stack(drawn), torch.stack([row.heatmaps[name]() for row in data]))
        for metric, values in expected.items():
            np.testing.assert_allclose(found.maps[name][metric], values.numpy(), rtol=1e-9, equal_nan=True)


def test_the_only_score_stands_for_all_and_words_are_not_judged() -> None:
    data = rows()
    found = judge(Red(), data, 2, CPU)
    assert found.words is None and not found.maps
    assert all(found.column(name) is found.scores["overall"] for name in SCORES)
    parts = selection(found, data)
    expected = np.mean([plcc(found.scores["overall"], people(data, name)) for name in SCORES])
    assert parts == {"PLCC": pytest.approx(expected), "selection": pytest.approx(expected)}


def test_the_selection_is_the_mean_of_what_there_is() -> None:
    data = rows()
    found = judge(Seer(), data, 2, CPU)
    parts = selection(found, data)
    assert list(parts) == ["PLCC", "CC", "F1", "selection"]
    assert parts["F1"] == 0
    assert parts["CC"] == pytest.approx(np.mean([columns["cc"].mean() for columns in found.maps.values()]))
    assert parts["selection"] == pytest.approx((parts["PLCC"] + parts["CC"]) / 3)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="No rows came"):
        judge(Red(), [], 2, CPU)
