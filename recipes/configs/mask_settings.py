"""How heat becomes masks: the settings that `align mask` and `align repair` share."""

from typing import Literal

from pydantic import Field

from recipes.settings import Settings


class MaskGroup(Settings):
    """Fields, defaults and bounds of `align.masks.MaskSettings`. Lengths are shares of the image's longer side."""

    threshold: float = Field(default=0.35, gt=0, le=1)
    """A pixel is hot from this share of the heatmap's peak on."""
    floor: float = Field(default=0.6, gt=0, le=1)
    """A region of which no pixel is this hot is no flaw: a heatmap without one has a peak, too. Measured on
    `sandbox-rahf`; critics that learned from real people are seldom so sure: begin with 0.15 there."""
    border: float = Field(default=0.01, ge=0, lt=0.5)
    """Width of the rim whose heat is ignored; predicted heatmaps are often hot there for no reason."""
    min_area: float = Field(default=0.002, ge=0, le=1)
    """Hot specks that are a smaller share of the image are dropped."""
    top_k: int = Field(default=3, ge=1)
    """Regions to keep at most, the hottest."""
    max_area: float = Field(default=0.5, gt=0, le=1)
    """Share of the image that the masks may take together; regions that would take more are left out."""
    dilation: float = Field(default=0.016, ge=0, le=1)
    """By how much a region grows on all sides; heat seldom covers the whole of a flaw."""
    feather: float = Field(default=0.012, ge=0, le=1)
    """Over how much the soft mask falls from 1 to 0 around the grown region."""
    profile: Literal["linear", "gaussian"] = "linear"
    """How it falls: `linear`, or `gaussian` (a bell of three standard deviations)."""
