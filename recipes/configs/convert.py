"""Settings of `align convert`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from recipes.settings import Settings


class ConvertConfig(Settings):
    """Turn the checkpoint of a published reward into a folder that `--rewards` reads; no code in it is run."""

    positional: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Path
    """The file that the authors publish."""
    reward: str = Field(alias="as")
    """What it becomes: hps-v1, hps-v2, hps-v2.1, pickscore, mps, aesthetic, image-reward or rahf-port."""
    out: Path | None = None
    """The folder to write, which must not be there yet; null: where the reward is looked for by its name."""
    clip: Path | None = None
    """For aesthetic: the checkpoint of OpenAI's CLIP ViT-L/14."""
    tokenizer: Path | None = None
    """For image-reward and rahf-port: `tokenizer.json` of bert-base-uncased or of t5-base."""
    vision_heads: int | None = Field(default=None, ge=1)
    """Attention heads of the image tower, which no tensor tells; null: as published."""
    text_heads: int | None = Field(default=None, ge=1)
    """Attention heads of the text tower; null: as published."""
    allow_pickle: bool = False
    """Take a file that holds pickled objects besides tensors; it is read by a process of its own."""
