"""Settings of `align generate`."""

import math
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from recipes.settings import Settings


class GenerateConfig(Settings):
    """Make images for a file of prompts: a folder that Hugging Face datasets opens as an imagefolder."""

    model: str
    """The text-to-image model: a folder, a repository on the Hub, or `sandbox`."""
    prompts: Path
    """The prompts: a .txt file with one a line, a .jsonl file with a `text` a line, or `sandbox:validation`."""
    output_dir: Path
    """Folder to write to. What it already holds of the same images is kept."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Images for each prompt."""
    lora: Path | None = None
    """A LoRA to apply: a folder or file in diffusers format. The learned word that its header names comes along."""
    num_inference_steps: int = Field(default=25, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """Strength of classifier-free guidance; 1 is none."""
    negative_prompt: str | None = None
    """What guidance leads away from; null for the words that the LoRA asks for, if it does (see align reward-token)."""
    negative_prompts: list[str] = []
    """Several instead, each with a weight: "blurry=1" "dull colours=0.5" leads away from their weighted mean."""
    no_reward_token: bool = False
    """Leave out the words that the LoRA asks for, as negative prompt and before the prompts."""
    batch_size: int = Field(default=32, ge=1)
    """Images sampled at once."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run. Each image has its own, drawn from this, its prompt and its number."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @field_validator("negative_prompts")
    @classmethod
    def _have_weights(cls, negative_prompts: list[str]) -> list[str]:
        split_weights(negative_prompts)
        return negative_prompts

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> "GenerateConfig":
        if self.negative_prompt is not None and self.negative_prompts:
            raise ValueError(
                "--negative_prompt and --negative_prompts came together. Leave one out: the former is a single text, "
                "the latter takes several, each as TEXT=WEIGHT."
            )
        return self


def split_weights(words: list[str]) -> dict[str, float]:
    """Each TEXT=WEIGHT as both, split at the last =; the text keeps its spaces, as they may belong to it.

    Raises:
        ValueError: No =, a weight that is not a finite number above 0, or a text that came twice.
    """
    weights: dict[str, float] = {}
    for word in words:
        text, _, weight = word.rpartition("=")
        if "=" not in word or not _is_weight(weight):
            raise ValueError(f"{word!r} must be TEXT=WEIGHT with a finite number above 0, such as 'blurry=0.5'.")
        if text in weights:
            raise ValueError(f"{text!r} came twice; give each text once, with one weight.")
        weights[text] = float(weight)
    return weights


def _is_weight(word: str) -> bool:
    try:
        return 0 < float(word) < math.inf
    except ValueError:
        return False
