"""Heatmaps to masks: where an image is flawed enough to be repainted, and how softly. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]

Profile = Literal["linear", "gaussian"]
"""How a soft mask falls from 1 to 0 with the distance from the mask."""

_NEIGHBOURS = np.ones((3, 3))  # pixels that touch at a corner belong together
_GAUSSIAN_WIDTHS = 3  # standard deviations in the width of a feather


@dataclass(frozen=True)
class MaskSettings:
    """How heat becomes regions. Lengths are shares of the image's longer side, so that they scale with its size.

    Arguments:
        threshold: A pixel is hot from this share of the map's peak on, in (0, 1].
        floor: Connected pixels of which none is this hot, in (0, 1], are no flaw: a map without one has a peak, too.
        border: Width of the rim whose heat is ignored, in [0, 0.5). Predicted maps are often hot there for no reason.
        min_area: Connected hot pixels that are a smaller share of the image are specks, and dropped; in [0, 1].
        top_k: Regions to keep at most, by heat.
        max_area: Share of the image that the masks may take together, in (0, 1]. More than that is no local flaw:
            regions that would take more are left out, the hottest come first.
        dilation: By how much a region grows on all sides, in [0, 1]; heat seldom covers the whole of a flaw. Holes that
            are left are filled.
        feather: Over how much the soft mask falls from 1 to 0 outside of the grown region, in [0, 1].
        profile: How it falls, "linear" or "gaussian" (a bell of three standard deviations).

    Raises:
        ValueError: A number outside its bounds.
    """

    threshold: float = 0.35
    floor: float = 0.6
    border: float = 0.01
    min_area: float = 0.002
    top_k: int = 3
    max_area: float = 0.5
    dilation: float = 0.016
    feather: float = 0.012
    profile: Profile = "linear"

    def __post_init__(self) -> None:
        bounds = {
            "threshold, in (0, 1]": 0 < self.threshold <= 1,
            "floor, in (0, 1]": 0 < self.floor <= 1,
            "border, in [0, 0.5)": 0 <= self.border < 0.5,
            "min_area, in [0, 1]": 0 <= self.min_area <= 1,
            "top_k, at least 1": self.top_k >= 1,
            "max_area, in (0, 1]": 0 < self.max_area <= 1,
            "dilation, in [0, 1]": 0 <= self.dilation <= 1,
            "feather, in [0, 1]": 0 <= self.feather <= 1,
        }
        for rule, holds in bounds.items():
            if not holds:
                name = rule.partition(",")[0]
                raise ValueError(f"{name} is {getattr(self, name)!r}; this must hold: {rule}. Change it.")


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; `bottom` and `right` are the first row and column outside of it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass(frozen=True, eq=False)
class Region:
    """One place of an image to repaint.

    Attributes:
        mask: The pixels to repaint.
        soft: How much of the repainted image is pasted, in [0, 1]: 1 on the mask, falling to 0 around it.
        heat: The region's heat before it grew: the sum over its pixels, divided by the number of pixels of the image.
        box: Bounds all pixels that may change, those where `soft` is above 0.
    """

    mask: Bool[Tensor, "h w"]
    soft: Float[Tensor, "h w"]
    heat: float
    box: Box


def find_regions(
    heatmap: Float[Tensor, "h w"], settings: MaskSettings, allowed: Bool[Tensor, "allowed_h allowed_w"] | None = None
) -> list[Region]:
    """The hottest connected regions of a heatmap, grown and feathered; the hottest first, none where it is cold.

    Arguments:
        heatmap: How flawed each pixel is, in [0, 1].
        settings: What counts as hot, how many regions, how much of the image, how much they grow.
        allowed: The user's own mask: heat outside of it is ignored, and no region or feather leaves it.

    Raises:
        ValueError: A heatmap that is empty, not finite or outside [0, 1], or `allowed` of another size.
    """
    heat = _cold_rim(_checked(heatmap), settings.border)
    if allowed is not None:
        heat = heat * _same_size(allowed, heat)
    if heat.max() < settings.floor:
        return []
    spots = _hottest_components(heat >= settings.threshold * heat.max(), heat, settings.min_area, settings.floor)
    spots = spots[: settings.top_k]
    regions = [_region(_grown(spot, settings, allowed), share, settings, allowed) for spot, share in spots]
    return _within_area(regions, settings.max_area)


def regions_of_mask(mask: Bool[Tensor, "h w"], settings: MaskSettings) -> list[Region]:
    """The connected regions of the user's own mask, the largest first; feathered, but neither grown nor dropped.

    The heat of a region is its share of the image. With a feather of 0, no pixel outside of the mask changes.
    """
    inside = _array(mask)
    spots = _hottest_components(inside, inside.astype(np.float64), min_area=0.0, floor=1.0)
    return [_region(torch.from_numpy(spot), share, settings, None) for spot, share in spots]


def combined(heatmaps: Sequence[Float[Tensor, "h w"]]) -> Float[Tensor, "h w"]:
    """The larger heat of each pixel, over heatmaps of one image such as those for implausibility and misalignment.

    Raises:
        ValueError: None, or of different sizes.
    """
    sizes = {tuple(heatmap.shape) for heatmap in heatmaps}
    if len(sizes) != 1:
        raise ValueError(
            f"Heatmaps of the sizes {sorted(sizes)} cannot be combined; give one or more, all of the size of the image."
        )
    return torch.stack(list(heatmaps)).amax(dim=0)


def union(regions: Sequence[Region], height: int, width: int) -> Bool[Tensor, "h w"]:
    """The pixels that are to be repainted in any of the regions of a height x width image."""
    whole = torch.zeros(height, width, dtype=torch.bool)
    for region in regions:
        whole |= region.mask
    return whole


def dilated(mask: Bool[Tensor, "h w"], radius: float) -> Bool[Tensor, "h w"]:
    """All pixels within `radius` pixels of the mask, from centre to centre: the mask grown by a disc."""
    return torch.from_numpy(_distance(mask) <= radius)


def feathered(mask: Bool[Tensor, "h w"], width: float, profile: Profile = "linear") -> Float[Tensor, "h w"]:
    """A soft mask: 1 on the mask, falling with the distance from it, and exactly 0 from `width` pixels on.

    A width of up to 1 pixel leaves the mask as it is, since its nearest neighbours are 1 pixel away.
    """
    nearness = 1 - np.minimum(_distance(mask) / max(width, 1e-6), 1)
    soft = {"linear": nearness, "gaussian": _bell(nearness)}[profile]
    return torch.from_numpy(soft.astype(np.float32))


def _bell(nearness: Array) -> Array:
    """A Gaussian of the distance (1 - nearness), shifted and scaled so that it is 1 at nearness 1 and 0 at 0."""
    bell = np.exp(-((_GAUSSIAN_WIDTHS * (1 - nearness)) ** 2) / 2)
    end = math.exp(-(_GAUSSIAN_WIDTHS**2) / 2)
    return (bell - end) / (1 - end)


def _distance(mask: Tensor) -> Array:
    """The distance of each pixel to the mask in pixels; infinite where the mask is empty."""
    inside = _array(mask)
    return np.asarray(ndimage.distance_transform_edt(~inside)) if inside.any() else np.full(inside.shape, np.inf)


def _hottest_components(hot: Array, heat: Array, min_area: float, floor: float) -> list[tuple[Array, float]]:
    """The connected parts of `hot` that are large and hot enough, with their heat per pixel of the image, by heat."""
    found: Any = ndimage.label(hot, structure=_NEIGHBOURS)
    labels, count = found
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    heats = np.bincount(labels.ravel(), heat.ravel(), count + 1)
    peaks = np.asarray(ndimage.maximum(heat, labels, range(count + 1)))
    flaws = [label for label in range(1, count + 1) if areas[label] >= min_area * hot.size and peaks[label] >= floor]
    return [(labels == label, float(heats[label] / hot.size)) for label in sorted(flaws, key=lambda one: -heats[one])]


def _grown(spot: Array, settings: MaskSettings, allowed: Tensor | None) -> Tensor:
    """Grown, and without holes: what a flaw encloses cannot be repainted around."""
    mask = dilated(torch.from_numpy(spot), settings.dilation * max(spot.shape))
    whole = torch.from_numpy(np.asarray(ndimage.binary_fill_holes(mask.numpy())))
    return whole if allowed is None else whole & allowed.cpu()


def _region(mask: Tensor, heat: float, settings: MaskSettings, allowed: Tensor | None) -> Region:
    soft = feathered(mask, settings.feather * max(mask.shape), settings.profile)
    if allowed is not None:
        soft = soft * allowed.cpu()
    return Region(mask, soft, heat, _bounds(soft > 0))


def _bounds(mask: Tensor) -> Box:
    rows, columns = (mask.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    return Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def _within_area(regions: Sequence[Region], max_area: float) -> list[Region]:
    """The regions, in their order, but for those with which the masks would take more than `max_area` of the image."""
    kept: list[Region] = []
    for region in regions:
        if int(union([*kept, region], *region.mask.shape).sum()) <= max_area * region.mask.numel():
            kept.append(region)
    return kept


def _cold_rim(heat: Array, border: float) -> Array:
    width = round(border * max(heat.shape))
    inside = np.zeros_like(heat)
    rows, columns = (slice(width, size - width) for size in heat.shape)
    inside[rows, columns] = heat[rows, columns]
    return inside


def _checked(heatmap: Tensor) -> Array:
    """The heat in float64 on the CPU."""
    heat = heatmap.detach().double().cpu().numpy()
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(
            f"A heatmap came with shape {heat.shape}; it must be (height, width). Give the map of one image at a time."
        )
    if not (heat >= 0).all() or not (heat <= 1).all():
        raise ValueError(
            f"A heatmap has values from {heat.min()} to {heat.max()}; they must lie in [0, 1]. Scale it to that range."
        )
    return heat


def _same_size(allowed: Tensor, heat: Array) -> Array:
    if tuple(allowed.shape) != heat.shape:
        raise ValueError(
            f"The mask is {tuple(allowed.shape)} and the heatmap {heat.shape} (height, width); they must be of one "
            "size. Scale the mask to the image."
        )
    return _array(allowed)


def _array(mask: Tensor) -> Array:
    return mask.detach().cpu().numpy()
