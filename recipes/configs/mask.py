"""Settings of `align mask`."""

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator, model_validator

from recipes.configs.mask_settings import MaskGroup
from recipes.settings import Settings


class MaskConfig(Settings):
    """Write the mask of what is flawed in a picture, for a tool that repaints what is white in it.

    Without a flaw the mask is black.
    """

    positional: ClassVar[tuple[str, ...]] = ("image",)

    image: Path
    """The picture, or a heatmap with `--is_heatmap`."""
    prompt: str | None = None
    """The prompt of the picture, which critics judge it by."""
    critic: str = "sandbox-rahf"
    """The critic that draws the heatmap: a reward with heatmaps, by the name that `--rewards` takes."""
    heatmap: str = "implausibility"
    """Which of the critic's heatmaps, or `both`: of each pixel the larger heat."""
    is_heatmap: bool = False
    """The file is a grey heatmap, black where nothing is wrong and white where it surely is, as `align score
    --heatmaps` writes; no critic is asked."""
    out: Path = Path("mask.png")
    """The PNG to write: 8-bit grey of the picture's size, white where it is to be repainted."""
    soft: bool = False
    """Write the feathered mask, which falls from white to black around each region."""
    mask: MaskGroup = MaskGroup()
    """How heat becomes a mask."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @field_validator("out")
    @classmethod
    def _is_a_png(cls, out: Path) -> Path:
        if out.suffix.lower() != ".png":
            raise ValueError(f"--out {out} must end in .png; a mask is a PNG. Give another name.")
        return out

    @model_validator(mode="after")
    def _has_what_its_heat_comes_from(self) -> "MaskConfig":
        if self.is_heatmap and self.prompt is not None:
            raise ValueError("--is_heatmap and --prompt came together; a heatmap needs no prompt. Leave one out.")
        if not self.is_heatmap and not (self.prompt or "").strip():
            raise ValueError("A critic judges a picture by its prompt; give --prompt, or --is_heatmap for a heatmap.")
        return self
