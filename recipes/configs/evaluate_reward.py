"""Settings of `align evaluate-reward`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from recipes.settings import Settings


class EvaluateRewardConfig(Settings):
    """Measure how far rewards agree with what people said of images: scores, heatmaps and misaligned words."""

    positional: ClassVar[tuple[str, ...]] = ("rewards",)

    rewards: list[str] = Field(min_length=1)
    """The rewards; the first is compared with each of the others. `resnet50` is trained on the data first."""
    data: str
    """The data set: a folder (see docs/train-a-reward.md), or `sandbox-test`."""
    split: str | None = None
    """The split to judge by; left out, `test`, or what the name of the data says."""
    max_missing: float = Field(default=0.05, ge=0, le=1)
    """The share of images that may be missing from the data set."""
    output_dir: Path = Path("runs/evaluate-reward")
    """Where `result.json`, `table.md` and `report.html` go."""
    conventions: Literal["richhf", "mit"] = "richhf"
    """Whose heatmap metrics: those of RichHF's public port, or of the MIT benchmark; see docs/train-a-reward.md."""
    resamples: int = Field(default=2000, ge=100)
    """Draws of the bootstrap over prompts that gives the intervals."""
    seed: int = Field(default=0, ge=0)
    """Seed of these draws."""
    format: Literal["table", "json"] = "table"
    """What is printed."""
    batch_size: int = Field(default=32, ge=1)
    """Images judged at once."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""
