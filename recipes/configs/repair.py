"""Settings of `align repair`."""

from abc import ABC
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.configs.filter_finetune import SamplingSettings
from recipes.configs.mask_settings import MaskGroup
from recipes.settings import Settings


class RepairSettings(Settings, ABC):
    """How a picture is repaired: what `recipes.repair_rounds.Repairer` reads."""

    heatmap: str = "implausibility"
    """Which of the critic's maps is followed, such as `implausibility` or `misalignment`; `both` is all of them."""
    region: MaskGroup = MaskGroup()
    """How heat becomes regions."""
    candidates: int = Field(default=4, ge=1)
    """Repaintings of each region, with seeds one after the other."""
    strength: list[float] = Field(default=[0.6, 0.9], min_length=1)
    """Shares of the denoising that are done anew, each in (0, 1]; candidates take them in turn."""
    padding: float | None = Field(default=None, ge=0, le=1)
    """What the model sees around a region, as a share of the picture's longer side. null: the whole picture where it is
    not larger than the model's own, else 1/16."""
    rounds: int = Field(default=2, ge=1)
    """How often what still glows is repainted, as long as something is gained."""
    objective: str = "plausibility"
    """The score that decides which candidate is the best."""
    min_gain: float = Field(default=0.05, ge=0)
    """A candidate must be better than the picture as it is by more than this."""
    tolerance: float = Field(default=0.05, ge=0)
    """No other score may fall below that of the original by more than this."""
    sharpen: bool = False
    """Put the words that the critic calls misaligned in front of the prompt."""
    sampling: SamplingSettings = SamplingSettings()
    """How the model draws."""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """Seed of the first candidate."""

    @model_validator(mode="after")
    def _strengths_are_shares(self) -> "RepairSettings":
        if not all(0 < value <= 1 for value in self.strength):
            raise ValueError(f"'strength' is {self.strength}; each must be in (0, 1], where 1 repaints from nothing.")
        return self


class RepairConfig(RepairSettings):
    """Find what is wrong with pictures, repaint it, and keep the best; what no candidate betters stays as it is."""

    positional: ClassVar[tuple[str, ...]] = ()

    image: list[Path] = Field(min_length=1)
    """The pictures: files, folders, quoted globs. They are never changed."""
    prompt: str | None = None
    """What the pictures show; one prompt for all."""
    prompts: Path | None = None
    """The prompts: a .txt file with one line a picture, or a .jsonl file with file_name and text a line. Left out, they
    are read beside the pictures, as `align score` does."""
    out: Path = Path("repaired")
    """Folder to write to: `images/` with the pictures, `details/` with strips, masks and numbers, `report.html`."""
    model: str = "sandbox"
    """The text-to-image model that repaints: a folder, a repository on the Hub, or `sandbox`."""
    lora: Path | None = None
    """A LoRA to apply: a folder or file in diffusers format. The learned word that its header names comes along."""
    critic: str = "sandbox-rahf"
    """What sees the flaws and scores the candidates, e.g. `rahf-port` or `my_critic:MyCritic`."""
    mask: Path | None = None
    """Your own mask, white where to repaint: one file, or a folder with one of each picture's name."""
    resize_mask: bool = False
    """Scale a mask that is not of its picture's size."""
    heat_in_mask: bool = False
    """Within your own mask repaint only what glows, instead of all of it."""
    keep_format: bool = False
    """Write JPEG and lossy WebP again as such, which changes pixels everywhere a little; otherwise they become PNG."""
    report_to: list[Literal["none", "wandb", "tensorboard"]] = ["none"]
    """Where the strips go besides the folder."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> "RepairConfig":
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt and --prompts came together; the prompts have one source. Leave one out.")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt is empty; it must say what the pictures show, for that is what is repainted.")
        return self

    @model_validator(mode="after")
    def _heat_needs_a_mask(self) -> "RepairConfig":
        if self.mask is None and (self.heat_in_mask or self.resize_mask):
            raise ValueError("--heat_in_mask and --resize_mask are about your own mask: give --mask, too.")
        return self
