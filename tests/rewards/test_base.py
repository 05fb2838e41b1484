"""What a reward refuses to score."""

import pytest
import torch

from rewards.base import check_images, check_pairs

IMAGE = torch.rand(3, 4, 4)


@pytest.mark.parametrize("prompts", [[], ["a", "b"], "a"], ids=["none", "two", "string"])
def test_images_and_prompts_must_pair_up(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="1 images came with .*; give a list with one prompt an image"):
        check_pairs([IMAGE], prompts)


@pytest.mark.parametrize("image", [IMAGE * 255, IMAGE * 2 - 1, IMAGE / 0 * 0], ids=["8-bit", "[-1, 1]", "nan"])
def test_images_must_be_in_range(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Image 1 has values from .* takes RGB in \[0, 1\]"):
        check_images([IMAGE, image])


def test_there_must_be_images() -> None:
    with pytest.raises(ValueError, match="No images came"):
        check_pairs([], [])


def test_pictures_pass() -> None:
    check_pairs([IMAGE, torch.zeros(3, 2, 2), torch.ones(3, 1, 5)], ["a", "b", "c"])
    check_pairs(IMAGE[None], ["a"])
