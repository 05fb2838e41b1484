"""Settings of `align compare`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.settings import Settings


class CompareConfig(Settings):
    """Compare two folders of images of the same prompts, pair by pair, by one or more rewards."""

    positional: ClassVar[tuple[str, ...]] = ("images_a", "images_b")

    images_a: Path
    """The first folder, A: a run, a folder that `align generate` wrote, or any images with prompts."""
    images_b: Path
    """The second folder, B; a positive difference speaks for it."""
    rewards: list[str] = Field(min_length=1)
    """The rewards, e.g. `sandbox-hps` or `my_reward:MyReward`; the first is the headline."""
    prompt: str | None = None
    """One prompt for all images, where they have none beside them."""
    prompts: Path | None = None
    """The prompts of either folder's images: a .jsonl file with file_name and text a line, or a .txt file."""
    output_dir: Path | None = None
    """Folder for `comparison.json` and the page."""
    format: Literal["table", "json"] = "table"
    """How the comparison is printed."""
    report: bool = False
    """Write `comparison.html`, too, a page with the pictures; needs --output_dir."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images scored at once. Left out, 64, and fewer where the memory is too small."""
    seed: int = Field(default=0, ge=0)
    """Seed of the intervals (bootstrap)."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @model_validator(mode="after")
    def _has_one_source_of_prompts(self) -> "CompareConfig":
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt and --prompts came together; the prompts have one source. Leave one out.")
        return self

    @model_validator(mode="after")
    def _has_a_place_for_the_page(self) -> "CompareConfig":
        if self.report and self.output_dir is None:
            raise ValueError("--report came without --output_dir; the page needs a folder. Give --output_dir DIR.")
        return self
