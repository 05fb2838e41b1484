"""The choice loss against the probabilities written out."""

import math

import pytest
import torch

from rewards.training.choice import choice_loss

SCALE = torch.tensor(2.0)


def _by_hand(cosines: list[list[float]], chosen: list[int]) -> float:
    """-log of the chosen image's share of exp(exp(logit_scale) * cosine), the mean over groups."""
    losses = []
    for group, index in zip(cosines, chosen, strict=True):
        weights = [math.exp(math.exp(SCALE.item()) * cosine) for cosine in group]
        losses.append(-math.log(weights[index] / sum(weights)))
    return sum(losses) / len(losses)


def test_the_loss_is_minus_the_log_probability_of_the_choice() -> None:
    cosines = [[0.21, 0.25, 0.19], [0.3, 0.1, 0.2]]
    loss = choice_loss(torch.tensor(cosines), torch.tensor([1, 2]), SCALE)
    assert loss.item() == pytest.approx(_by_hand(cosines, [1, 2]), rel=1e-6)


def test_absent_images_do_not_count() -> None:
    cosines = torch.tensor([[0.21, 0.25, 0.9], [0.3, 0.1, 0.2]], requires_grad=True)
    present = torch.tensor([[True, True, False], [True, True, True]])
    loss = choice_loss(cosines, torch.tensor([1, 2]), SCALE, present)
    assert loss.item() == pytest.approx(_by_hand([[0.21, 0.25], [0.3, 0.1, 0.2]], [1, 2]), rel=1e-6)
    loss.backward()
    assert cosines.grad is not None
    assert cosines.grad[0, 2] == 0
    assert cosines.grad.isfinite().all()


def test_equal_cosines_leave_log_n_nats_and_train_no_scale() -> None:
    scale = SCALE.clone().requires_grad_()
    loss = choice_loss(torch.full((2, 4), 0.2), torch.tensor([0, 3]), scale)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_a_choice_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="chosen image of a group is masked out"):
        choice_loss(torch.zeros(1, 2), torch.tensor([1]), SCALE, torch.tensor([[True, False]]))
