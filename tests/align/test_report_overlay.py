"""Heat is seen where it is, in the order of how much it is, and what has none keeps its hue."""

import colorsys
from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from align.report.overlay import DESATURATION, LUMA, OPACITY, WARM, overlay, warm


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """As outside the tests, where annotations are not checked and our own errors must speak."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def lightness(colours: Tensor) -> Tensor:
    """CIE L* of sRGB colours, (3, ...) in [0, 1] (IEC 61966-2-1, CIE 15)."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = torch.einsum("c,c...->...", linear.new_tensor([0.2126, 0.7152, 0.0722]), linear)
    return torch.where(luminance > 0.008856, 116 * luminance ** (1 / 3) - 16, 903.3 * luminance)


def test_without_heat_hue_and_brightness_are_those_of_the_image(image: Tensor) -> None:
    drawn = overlay(image, torch.zeros(6, 8))
    luma = torch.tensor(LUMA)[:, None, None]
    assert torch.allclose((luma * drawn).sum(0), (luma * image).sum(0), atol=1e-6)
    for before, after in zip(image.flatten(1).T.tolist(), drawn.flatten(1).T.tolist(), strict=True):
        hue = colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0]
        assert abs((hue + 0.5) % 1 - 0.5) < 1e-4
    spread = (drawn.amax(0) - drawn.amin(0)) / (image.amax(0) - image.amin(0))
    assert torch.allclose(spread, torch.full_like(spread, 1 - DESATURATION), atol=1e-4)


def test_each_pixel_is_the_mix_that_its_heat_says(image: Tensor) -> None:
    heatmap = torch.linspace(0, 1, 48).reshape(6, 8)
    drawn = overlay(image, heatmap)
    for y, x in ((0, 0), (0, 5), (2, 3), (4, 1), (5, 7)):
        heat, pixel = heatmap[y, x].item(), image[:, y, x]
        left = min(int(4 * heat), 3)
        share = 4 * heat - left
        colour = (1 - share) * torch.tensor(WARM[left]) + share * torch.tensor(WARM[left + 1])
        greyed = (1 - DESATURATION) * pixel + DESATURATION * (torch.tensor(LUMA) * pixel).sum()
        wanted = (1 - OPACITY * heat) * greyed + OPACITY * heat * colour
        assert torch.allclose(drawn[:, y, x], wanted, atol=1e-6)


def test_more_heat_is_darker_and_redder_all_along() -> None:
    colours = warm(torch.linspace(0, 1, 201)[None])[:, 0]
    assert (lightness(colours).diff() < -0.05).all()
    assert (colours[0] > colours[1]).all() and ((colours[0] - colours[1]).diff() > -0.02).all()
    assert colours.min() >= 0 and colours.max() <= 1


@pytest.mark.parametrize("pixel", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.2, 0.4, 0.8)])
def test_heat_is_seen_on_any_ground_and_more_of_it_more(pixel: tuple[float, float, float]) -> None:
    image = torch.tensor(pixel)[:, None, None].expand(3, 1, 5)
    drawn = overlay(image, torch.linspace(0, 1, 5)[None])[:, 0]
    seen = (drawn[:, 1:] - drawn[:, :1]).norm(dim=0)
    assert seen[0] > 0.1 and (seen.diff() > 0).all()


def test_heat_is_seen_even_on_red() -> None:
    image = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 1, 5)
    drawn = overlay(image, torch.linspace(0, 1, 5)[None])[:, 0]
    assert ((drawn[:, 1:] - drawn[:, :1]).norm(dim=0) > 0.1).all()


def test_neither_input_is_written_to(image: Tensor) -> None:
    heatmap, before = torch.rand(6, 8), image.clone()
    heat_before = heatmap.clone()
    overlay(image, heatmap)
    assert torch.equal(image, before) and torch.equal(heatmap, heat_before)


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (torch.full((6, 8), 1.5), "from 1.5 to 1.5; heat must be in"),
        (torch.full((6, 8), -0.1), "from -0.1 to -0.1"),
        (torch.full((6, 8), torch.nan), "from nan to nan"),
    ],
    ids=["high", "low", "nan"],
)
def test_what_is_no_heat_is_refused(image: Tensor, heatmap: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(image, heatmap)


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_heatmap_of_another_size_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"heatmap is \(8, 6\) and the image \(6, 8\)"):
        overlay(image, torch.zeros(8, 6))
