"""Settings of `align score`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from recipes.settings import Settings


class ScoreConfig(Settings):
    """Score a folder of images with one or more rewards; the scores are kept beside the images."""

    positional: ClassVar[tuple[str, ...]] = ("images",)

    images: Path
    """The images: a folder that `align generate` wrote, or any imagefolder whose metadata.jsonl has a `text`."""
    rewards: list[str] = Field(min_length=1)
    """The rewards, e.g. `sandbox-hps` or `my_reward:MyReward`."""
    batch_size: int = Field(default=64, ge=1)
    """Images scored at once."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""
