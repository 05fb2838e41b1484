"""The contract of a text-to-image model."""

import dataclasses
import inspect

import pytest

from align.model import Sampling, TextToImage


def test_sampling_defaults_to_the_models_own_scheduler_and_no_negative_prompt() -> None:
    assert Sampling(25, 7.5) == Sampling(25, 7.5, negative_prompt="", scheduler=None)


def test_sampling_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling(25, 7.5).guidance_scale = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("steps", [0, -3])
def test_sampling_needs_a_step(steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; it must be at least 1"):
        Sampling(steps, 7.5)


@pytest.mark.parametrize("scale", [0.0, 0.99, -2.0, float("nan"), float("inf")])
def test_guidance_below_none_or_not_finite_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="guidance_scale is .* 1 means no guidance"):
        Sampling(25, scale)


def test_text_to_image_is_abstract() -> None:
    assert inspect.isabstract(TextToImage)
    with pytest.raises(TypeError, match="abstract"):
        TextToImage()  # pyright: ignore[reportAbstractUsage]
