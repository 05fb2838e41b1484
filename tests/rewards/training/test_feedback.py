"""Batches of rich feedback: functions of their number, maps cropped as images are, photos as negatives."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.datasets.rich_feedback import RichFeedback
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.training.augment import augment
from rewards.training.feedback import FeedbackBatches, Photo, example
from rewards.training.rahf import score_error


def rows(count: int = 5, side: int = 32) -> list[RichFeedback]:
    def made(seed: int, channels: int) -> Callable[[], Float[Tensor, "_ _ _"]]:
        return lambda: torch.rand(channels, side, side, generator=torch.Generator().manual_seed(seed))

    return [
        RichFeedback(
            f"{index}.png",
            f"a, cat {index}",
            ("a", "cat", str(index)),
            (False, True, False),
            {name: (index + place) / 10 for place, name in enumerate(SCORES)},
            {
                name: lambda place=place, index=index: made(100 * place + index, 1)()[0]
                for place, name in enumerate(HEATMAPS)
            },
            made(index, 3),
        )
        for index in range(count)
    ]


def unchanged(image: Tensor) -> Tensor:
    return image


def test_an_example_is_what_the_row_says() -> None:
    row = rows()[2]
    found = example(row, unchanged, 32)
    assert (found.prompt, found.marked) == ("a, cat 2", "a cat_0 2")
    assert found.scores.tolist() == torch.tensor([0.2, 0.3, 0.4, 0.5]).tolist()
    assert torch.equal(found.pixels, row.image())
    assert torch.equal(found.heatmaps[1], row.heatmaps["misalignment"]())


def test_a_batch_is_a_function_of_its_number() -> None:
    batches = FeedbackBatches(rows(), lambda image: image[:, :16, :16], 32, 4, seed=3)
    first, again, other = batches(7), batches(7), batches(8)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.heatmaps, again.heatmaps)
    assert first.prompts == again.prompts
    assert not torch.equal(first.pixels, other.pixels)


def test_photos_are_negatives_without_scores() -> None:
    photo = Photo(lambda: torch.ones(3, 32, 32), "a dog")
    batches = FeedbackBatches(rows(), unchanged, 32, 400, 0, augmented=False, photos=[photo], negatives=0.25)
    batch = batches(0)
    is_photo = torch.tensor([prompt == "a dog" for prompt in batch.prompts])
    assert 70 < is_photo.sum() < 130
    assert batch.scores[is_photo].isnan().all() and batch.scores[~is_photo].isfinite().all()
    assert batch.heatmaps[is_photo].count_nonzero() == 0
    assert [text for text, photo in zip(batch.marked, is_photo, strict=True) if photo] == ["a dog"] * int(
        is_photo.sum()
    )


def test_scores_that_nobody_gave_are_left_out() -> None:
    scores = torch.tensor([[0.5, 0.1], [0.2, 0.9]], requires_grad=True)
    targets = torch.tensor([[1.0, torch.nan], [torch.nan, 0.5]])
    error = score_error(scores, targets)
    assert error.item() == pytest.approx((0.25 + 0.16) / 2)
    error.backward()
    assert scores.grad is not None and scores.grad[0, 1] == 0 and scores.grad[0, 0] != 0
    assert score_error(scores, targets * torch.nan).item() == 0


def test_maps_are_cropped_as_the_image_is() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = torch.stack([y / 40, x / 60, torch.zeros(40, 60)])
    sizes = set[tuple[int, int]]()
    for seed in range(40):
        cropped, maps = augment(image, image[:2, ::2, ::2], np.random.default_rng(seed))
        height, width = cropped.shape[1:]
        sizes.add((height, width))
        assert 32 <= height <= 40 and 48 <= width <= 60
        assert abs(2 * maps.shape[1] - height) <= 2 and abs(2 * maps.shape[2] - width) <= 2
        corner = (maps[0, 0, 0].item() * 40, maps[1, 0, 0].item() * 60)
        if cropped[2].max() == 0 and (cropped[0, 0] == cropped[0, 0, 0]).all():  # colours as they were
            assert abs(corner[0] - cropped[0, 0, 0].item() * 40) <= 3
            assert abs(corner[1] - cropped[1, 0, 0].item() * 60) <= 3
    assert (40, 60) in sizes and len(sizes) > 10


def test_colours_change_sometimes_and_stay_in_range() -> None:
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    found = [augment(image, torch.zeros(2, 4, 4), np.random.default_rng(seed))[0] for seed in range(60)]
    whole = [one for one in found if one.shape == image.shape]
    changed = [one for one in whole if not torch.equal(one, image)]
    assert 0 < len(changed) < len(whole)
    assert all(one.min() >= 0 and one.max() <= 1 for one in found)
    again, _ = augment(image, torch.zeros(2, 4, 4), np.random.default_rng(5))
    assert torch.equal(again, found[5])
