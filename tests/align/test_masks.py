"""Heatmaps to masks, against brute force: components by flood fill, discs and feathers by measuring every distance."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.masks import Box, MaskSettings, combined, dilated, feathered, find_regions, regions_of_mask, union

BARE = MaskSettings(
    threshold=0.5, floor=0.1, border=0.0, min_area=0.0, top_k=100, max_area=1.0, dilation=0.0, feather=0.0
)
"""Threshold and label, and nothing else."""


def blotches(height: int, width: int, seed: int, share: float = 0.3) -> Tensor:
    """Random heat on a share of the pixels, one of them at 1, and none elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(height, width, generator=generator) < share
    heat = (0.6 + 0.4 * torch.rand(height, width, generator=generator)) * there
    heat[height // 2, width // 2] = 1.0
    return heat


def flood(mask: Tensor) -> list[set[tuple[int, int]]]:
    """The 8-connected components, pixel by pixel."""
    waiting = {(row, column) for row, column in mask.nonzero().tolist()}
    components: list[set[tuple[int, int]]] = []
    while waiting:
        component, frontier = set[tuple[int, int]](), [waiting.pop()]
        while frontier:
            row, column = frontier.pop()
            component.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & waiting
            waiting -= near
            frontier.extend(near)
        components.append(component)
    return components


def closed(part: set[tuple[int, int]], height: int, width: int) -> set[tuple[int, int]]:
    """A component and what it encloses: all that cannot be reached from beyond the image by sides of pixels."""
    rest = {(row, column) for row in range(-1, height + 1) for column in range(-1, width + 1)} - part
    frontier = [(-1, -1)]
    rest.remove((-1, -1))
    while frontier:
        row, column = frontier.pop()
        near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & rest
        rest -= near
        frontier.extend(near)
    return part | rest


def distances(mask: Tensor) -> Tensor:
    """The distance of each pixel to the nearest of the mask, by measuring all."""
    rows, columns = torch.meshgrid(torch.arange(mask.shape[0]), torch.arange(mask.shape[1]), indexing="ij")
    pixels = torch.stack([rows, columns], -1).double().flatten(0, 1)
    return torch.cdist(pixels, mask.nonzero().double()).amin(1).view(mask.shape)


def pixels(mask: Tensor) -> set[tuple[int, int]]:
    return {(row, column) for row, column in mask.nonzero().tolist()}


def spots(height: int, width: int, *boxes: tuple[int, int, int, int, float]) -> Tensor:
    """A map that is hot in rectangles (top, left, bottom, right, heat)."""
    heat = torch.zeros(height, width)
    for top, left, bottom, right, value in boxes:
        heat[top:bottom, left:right] = value
    return heat


class TestFindRegions:
    @pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 23), (31, 8)])
    @pytest.mark.parametrize("seed", range(4))
    def test_components_and_their_order_equal_brute_force(self, height: int, width: int, seed: int) -> None:
        heat = blotches(height, width, seed)
        found = find_regions(heat, BARE)
        expected = sorted(flood(heat >= 0.5), key=lambda part: -sum(float(heat[pixel]) for pixel in part))
        assert len(expected) > 2
        assert [pixels(region.mask) for region in found] == [closed(part, height, width) for part in expected]
        for region, part in zip(found, expected, strict=True):
            assert region.heat == pytest.approx(sum(float(heat[pixel]) for pixel in part) / heat.numel())
            assert torch.equal(region.soft, region.mask.float())

    def test_pixels_that_touch_at_a_corner_are_one_region(self) -> None:
        assert len(find_regions(torch.eye(5), BARE)) == 1

    def test_the_threshold_is_relative_to_the_peak_above_the_floor(self) -> None:
        heat = spots(10, 10, (1, 1, 3, 3, 0.4), (6, 6, 8, 8, 0.2), (1, 7, 2, 8, 0.19))
        assert int(union(find_regions(heat, BARE), 10, 10).sum()) == 8
        assert int(union(find_regions(heat, replace(BARE, floor=0.3)), 10, 10).sum()) == 4
        assert int(union(find_regions(heat, replace(BARE, threshold=0.1)), 10, 10).sum()) == 9
        assert find_regions(heat, replace(BARE, floor=0.41)) == []

    def test_a_region_is_as_large_as_its_warmth_but_must_be_hot_somewhere(self) -> None:
        heat = spots(10, 12, (1, 1, 5, 5, 0.5), (2, 2, 3, 3, 0.8), (6, 7, 9, 10, 0.6))
        (region,) = find_regions(heat, replace(BARE, floor=0.7))
        assert region.mask.sum() == 16 and bool(region.mask[1:5, 1:5].all())
        assert find_regions(heat, replace(BARE, floor=0.81)) == []

    def test_heat_at_the_border_neither_counts_nor_sets_the_peak(self) -> None:
        heat = spots(20, 40, (0, 0, 20, 2, 1.0), (8, 20, 10, 22, 0.2))
        found = find_regions(heat, replace(BARE, border=0.05))  # 2 pixels of 40
        assert [region.box for region in found] == [Box(8, 20, 10, 22)]
        assert len(find_regions(heat, BARE)) == 1 and find_regions(heat, BARE)[0].box == Box(0, 0, 20, 2)

    def test_specks_are_dropped_by_their_share_of_the_image(self) -> None:
        heat = spots(10, 10, (1, 1, 2, 3, 1.0), (5, 5, 8, 8, 0.6))
        assert len(find_regions(heat, replace(BARE, min_area=0.02))) == 2
        assert [int(region.mask.sum()) for region in find_regions(heat, replace(BARE, min_area=0.03))] == [9]

    def test_the_hottest_are_kept_not_the_largest(self) -> None:
        heat = spots(12, 12, (0, 0, 3, 3, 0.5), (6, 6, 8, 9, 1.0), (10, 0, 11, 2, 1.0))  # masses 4.5, 6, 2
        found = find_regions(heat, replace(BARE, top_k=2))
        assert [region.box for region in found] == [Box(6, 6, 8, 9), Box(0, 0, 3, 3)]

    def test_regions_that_would_take_too_much_are_left_out(self) -> None:
        heat = spots(10, 10, (0, 0, 5, 8, 1.0), (7, 0, 9, 5, 0.9), (9, 9, 10, 10, 0.8))
        sizes = {share: [int(r.mask.sum()) for r in find_regions(heat, replace(BARE, max_area=share))]
                 for share in (0.51, 0.5, 0.41, 0.2)}  # fmt: skip
        assert sizes == {0.51: [40, 10, 1], 0.5: [40, 10], 0.41: [40, 1], 0.2: [10, 1]}

    def test_the_area_is_that_of_the_grown_masks_counted_once(self) -> None:
        heat = spots(20, 20, (5, 4, 6, 5, 1.0), (5, 8, 6, 9, 1.0))
        settings = replace(BARE, dilation=0.1)  # 2 pixels: two discs of 13 that share one
        assert int(union(find_regions(heat, settings), 20, 20).sum()) == 25
        assert len(find_regions(heat, replace(settings, max_area=25 / 400))) == 2
        assert len(find_regions(heat, replace(settings, max_area=24 / 400))) == 1

    def test_dilation_and_feather_scale_with_the_longer_side(self) -> None:
        heat = spots(20, 40, (9, 19, 11, 21, 1.0))
        region = find_regions(heat, replace(BARE, dilation=0.075, feather=0.1))[0]
        distance = distances(heat > 0)
        assert torch.equal(region.mask, distance <= 3)
        torch.testing.assert_close(region.soft, (1 - distances(region.mask) / 4).clamp(min=0).float())
        assert region.box == Box(3, 13, 17, 27)  # 3 pixels of dilation, and 3 of the feather's 4 that are not 0

    def test_holes_are_filled(self) -> None:
        """A ring is repainted with what it encloses; a bay that is open to the border is none."""
        heat = torch.zeros(12, 20)
        heat[2:9, 2:9], heat[4:7, 4:7] = 1, 0
        heat[3:9, 12:17], heat[4:9, 13:16] = 0.9, 0
        ring, bay = find_regions(heat, BARE)
        assert ring.mask.sum() == 49
        assert torch.equal(bay.mask, heat == 0.9)

    def test_a_users_mask_limits_heat_growth_and_feather(self) -> None:
        heat = spots(20, 20, (4, 4, 8, 8, 0.5), (14, 14, 16, 16, 1.0))
        allowed = torch.zeros(20, 20, dtype=torch.bool)
        allowed[2:9, 2:9] = True
        region, *others = find_regions(heat, replace(BARE, dilation=0.1, feather=0.2), allowed)
        assert others == []  # and the peak outside did not raise the threshold
        assert not bool(region.mask[~allowed].any()) and not bool(region.soft[~allowed].any())
        assert torch.equal(region.mask, dilated(heat == 0.5, 2.0) & allowed)
        assert region.box == Box(2, 2, 9, 9)


class TestEdgeCases:
    def test_a_cold_map_has_no_region(self) -> None:
        assert find_regions(torch.zeros(8, 8), MaskSettings()) == []

    @pytest.mark.parametrize("value", [0.05, 0.5, 1.0])
    def test_a_constant_map_is_no_local_flaw(self, value: float) -> None:
        assert find_regions(torch.full((32, 32), value), MaskSettings()) == []

    def test_all_hot_is_one_region_where_that_is_allowed(self) -> None:
        (region,) = find_regions(torch.ones(6, 9), replace(BARE, dilation=0.5, feather=0.5))
        assert bool(region.mask.all()) and bool((region.soft == 1).all())
        assert (region.box, region.heat) == (Box(0, 0, 6, 9), 1.0)

    def test_one_pixel_is_found_in_its_corner(self) -> None:
        (region,) = find_regions(spots(5, 7, (4, 6, 5, 7, 0.2)), BARE)
        assert region.box == Box(4, 6, 5, 7)

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2)])
    def test_tiny_maps(self, height: int, width: int) -> None:
        settings = replace(MaskSettings(), max_area=1.0)
        (region,) = find_regions(torch.ones(height, width), settings)
        assert region.box == Box(0, 0, height, width)

    def test_half_precision_and_gradients_are_taken(self) -> None:
        heat = spots(8, 8, (2, 2, 4, 4, 0.5)).to(torch.float16).requires_grad_()
        assert find_regions(heat, BARE)[0].box == Box(2, 2, 4, 4)


class TestUsersMask:
    def test_its_parts_are_the_regions_the_largest_first(self) -> None:
        mask = spots(10, 10, (0, 0, 1, 1, 1), (4, 4, 8, 7, 1)) > 0
        small, large = 1 / 100, 12 / 100
        found = regions_of_mask(mask, MaskSettings(top_k=1, max_area=0.01, feather=0.0))
        assert [region.heat for region in found] == [large, small]
        assert torch.equal(union(found, 10, 10), mask)
        assert all(torch.equal(region.soft, region.mask.float()) for region in found)

    def test_an_empty_mask_has_none(self) -> None:
        assert regions_of_mask(torch.zeros(4, 4, dtype=torch.bool), MaskSettings()) == []


class TestShapes:
    @pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 1.5, 3.7, 100.0])
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (15, 9), (4, 30)])
    def test_dilation_equals_brute_force(self, height: int, width: int, radius: float) -> None:
        mask = blotches(height, width, seed=1, share=0.05) > 0
        assert torch.equal(dilated(mask, radius), distances(mask) <= radius)

    @pytest.mark.parametrize("width", [0.0, 1.0, 2.5, 6.0])
    def test_feathers_equal_their_formulas(self, width: float) -> None:
        mask = blotches(14, 20, seed=2, share=0.02) > 0
        share = (distances(mask) / max(width, 1e-6)).clamp(max=1)
        torch.testing.assert_close(feathered(mask, width, "linear"), (1 - share).float())
        end = math.exp(-4.5)
        bell = (torch.exp(-((3 * share) ** 2) / 2) - end) / (1 - end)
        torch.testing.assert_close(feathered(mask, width, "gaussian"), bell.float())

    @pytest.mark.parametrize("profile", ["linear", "gaussian"])
    def test_a_feather_is_one_inside_and_exactly_zero_from_its_width_on(self, profile: Any) -> None:
        mask = torch.zeros(1, 12, dtype=torch.bool)
        mask[0, :3] = True
        soft = feathered(mask, 4.0, profile)[0]
        assert bool((soft[:3] == 1).all()) and bool((soft[6:] == 0).all())
        assert bool((soft[2:7].diff() < 0).all())

    def test_an_empty_mask_stays_empty(self) -> None:
        empty = torch.zeros(4, 6, dtype=torch.bool)
        assert not bool(dilated(empty, 3.0).any()) and not bool(feathered(empty, 3.0).any())

    def test_combining_takes_the_larger_heat(self) -> None:
        first, second = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.3, 0.2]])
        assert torch.equal(combined([first, second]), torch.tensor([[0.3, 0.9]]))
        assert torch.equal(combined([first]), first)


class TestErrors:
    @pytest.mark.parametrize(
        ("heat", "message"),
        [
            (torch.zeros(0, 4), "must be \\(height, width\\)"),
            (torch.full((2, 2), 1.5), "from 1.5 to 1.5; they must lie in \\[0, 1\\]"),
            (torch.full((2, 2), -0.1), "must lie in"),
            (torch.full((2, 2), torch.nan), "from nan to nan"),
        ],
    )
    def test_heat_that_is_none(self, heat: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_regions(heat, BARE)

    def test_a_mask_of_another_size(self) -> None:
        with pytest.raises(ValueError, match=r"The mask is \(2, 3\) and the heatmap \(2, 2\)"):
            find_regions(torch.zeros(2, 2), BARE, torch.ones(2, 3, dtype=torch.bool))

    def test_heatmaps_that_cannot_be_combined(self) -> None:
        with pytest.raises(ValueError, match=r"sizes \[\(2, 2\), \(2, 3\)\]"):
            combined([torch.zeros(2, 2), torch.zeros(2, 3)])
        with pytest.raises(ValueError, match="one or more"):
            combined([])

    @pytest.mark.parametrize(
        "change",
        [
            {"threshold": 0.0}, {"floor": 0.0}, {"border": 0.5}, {"min_area": -0.1}, {"top_k": 0}, {"max_area": 1.1},
            {"dilation": math.nan}, {"feather": -1.0}
        ],
    )  # fmt: skip
    def test_settings_out_of_bounds(self, change: dict[str, Any]) -> None:
        (name, value), *_ = change.items()
        with pytest.raises(ValueError, match=f"{name} is {value!r}; this must hold: {name}"):
            replace(BARE, **change)
