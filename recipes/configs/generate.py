"""Settings of `align generate`."""

from pathlib import Path

from pydantic import Field

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
    """A LoRA to apply: a folder or file in diffusers format. A learned_embeds.safetensors beside it is loaded, too."""
    num_inference_steps: int = Field(default=25, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """Strength of classifier-free guidance; 1 is none."""
    negative_prompt: str | None = None
    """What guidance leads away from; null for the words that the LoRA asks for, if it does (see align reward-token)."""
    no_reward_token: bool = False
    """Leave out the words that the LoRA asks for."""
    batch_size: int = Field(default=32, ge=1)
    """Images sampled at once."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run. Each image has its own, drawn from this, its prompt and its number."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""
