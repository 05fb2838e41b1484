"""Settings of `align score`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.settings import Settings


class ScoreConfig(Settings):
    """Score images with one or more rewards; what has scores is not scored again.

    Transparent parts are flattened on white; images that cannot be read are told and left out.
    """

    positional: ClassVar[tuple[str, ...]] = ("images",)

    images: list[Path] = Field(min_length=1)
    """The images: a run, a folder, files, quoted globs, .parquet tables or .tar shards."""
    rewards: list[str] = Field(min_length=1)
    """The rewards, e.g. `sandbox-hps` or `my_reward:MyReward`; the first one's first score sorts the page."""
    prompt: str | None = None
    """One prompt for all images."""
    prompts: Path | None = None
    """The prompts: a .txt file with one line an image, or a .jsonl file with file_name and text a line. Left out, they
    are read beside the images: metadata.jsonl, .csv or .parquet, a table's column, KEY.txt or KEY.json of a shard."""
    output_dir: Path | None = None
    """Folder for the scores. Left out, `scores` in the images' folder, or here where there is more than one place."""
    format: Literal["table", "json"] = "table"
    """What is printed: a summary to read, or one JSON document with every score."""
    heatmaps: bool = False
    """Write the heatmaps of rewards that draw some, as PNG and over the picture, and the words that images miss."""
    report: bool = False
    """Write `report.html`, too: the images sorted by score, under their heatmaps."""
    strict: bool = False
    """Exit with 1 where an image was left out."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images scored at once. Left out, 64, and fewer where the memory is too small."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @model_validator(mode="after")
    def _has_one_source_of_prompts(self) -> "ScoreConfig":
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt and --prompts came together; the prompts have one source. Leave one out.")
        return self
