"""Sharpness: known values, blur in either direction, and what it must not depend on."""

import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace
from torch import Tensor

from align.sharpness import sharpness


def noise(side: int = 96, seed: int = 0) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


def blurred(image: Tensor, down: float, across: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, down, across)))


def test_it_is_the_variance_of_scipys_laplacian_over_that_of_the_brightness() -> None:
    image = noise()
    brightness = (0.299 * image[0].double() + 0.587 * image[1].double() + 0.114 * image[2].double()).numpy()
    expected = laplace(brightness)[1:-1, 1:-1].var(ddof=1) / brightness.var(ddof=1)
    assert sharpness(image) == pytest.approx(expected, rel=1e-9)
    assert sharpness(noise(512)) == pytest.approx(20, rel=0.02)  # 4^2 + 4 x 1^2


@pytest.mark.parametrize(("down", "across"), [(1.5, 0.0), (0.0, 1.5), (1.5, 1.5)])
def test_blur_along_either_axis_lowers_it(down: float, across: float) -> None:
    image = noise()
    values = [sharpness(blurred(image, share * down, share * across)) for share in (0, 0.5, 1, 2)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.5 * values[0]


def test_contrast_brightness_and_a_quarter_turn_do_not_matter() -> None:
    image = blurred(noise(), 1, 2)
    for same in (0.2 * image, 0.2 * image + 0.7, 1 - image, image.transpose(1, 2), image.flip(2)):
        assert sharpness(same) == pytest.approx(sharpness(image), rel=1e-4)


def test_what_shows_nothing_is_not_sharp() -> None:
    assert sharpness(torch.full((3, 8, 8), 0.3)) == 0
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(3, 64, 64)
    assert sharpness(ramp) < 1e-9


def test_an_image_without_inner_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"An image of \(2, 9\) pixels has no inner ones"):
        sharpness(torch.rand(3, 2, 9))
