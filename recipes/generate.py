"""Make images for a file of prompts.

    align generate --model sandbox --prompts prompts.txt --samples_per_prompt 4 --output_dir runs/base

The folder is a Hugging Face imagefolder. A killed run is continued by the same command.
"""

from collections.abc import Callable, Mapping

from accelerate import Accelerator

from align.device import pick_device, pick_dtype, set_threads
from align.families.load import load_model
from align.generate import generate
from align.log import Log
from align.lora import PROMPT_PREFIX, read_header, read_reward_token
from align.model import Sampling, TextToImage
from align.prefixed import Prefixed
from recipes.configs.generate import GenerateConfig, split_weights
from recipes.configuration import launch
from recipes.models import resolve_model
from recipes.prompts import read_prompts
from recipes.settings import as_yaml


def main(config: GenerateConfig, *, dry_run: bool = False) -> None:
    """Generate what the configuration asks for, or say how much that is."""
    prompts = read_prompts(config.prompts)
    path = resolve_model(config.model)
    if dry_run:
        images = len(prompts) * config.samples_per_prompt
        print(f"{as_yaml(config)}plan: {len(prompts):,} prompts, {images:,} images, into {config.output_dir}")
        return
    set_threads()
    device = pick_device(config.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    say = accelerator.print
    model = prefixed(load_model(path, device, pick_dtype(device), config.lora), config, say)
    sampling = Sampling(config.num_inference_steps, config.guidance_scale, negative_prompt(config, say))
    n, size = config.samples_per_prompt, config.batch_size
    with Log(config.output_dir, is_main=accelerator.is_main_process) as log:
        generate(model, prompts, n, config.output_dir, config.seed, size, sampling, log, accelerator)
    if truncated := model.count_truncated(prompts):
        say(f"{truncated} of {len(prompts)} prompts are longer than the model reads; their ends were not seen.")
    say(f"{config.output_dir} holds {len(prompts) * n:,} images.")


def prefixed(model: TextToImage, config: GenerateConfig, say: Callable[[str], None]) -> TextToImage:
    """The model, with the words before every prompt that the LoRA asks for, which are told."""
    prefix = read_header(config.lora, PROMPT_PREFIX) if config.lora and not config.no_reward_token else ""
    if not prefix:
        return model
    say(f"{prefix!r} stands before every prompt, as {config.lora} asks for it.")
    return Prefixed(model, prefix)


def negative_prompt(config: GenerateConfig, say: Callable[[str], None]) -> str | Mapping[str, float]:
    """What the user says, else the words that the LoRA asks for, which are told."""
    asked = read_reward_token(config.lora) if config.lora and not config.no_reward_token else None
    if config.negative_prompt is not None or config.negative_prompts or asked is None:
        return config.negative_prompt or split_weights(config.negative_prompts) or ""
    say(_told(asked, config))
    return asked


def _told(asked: str | Mapping[str, float], config: GenerateConfig) -> str:
    if isinstance(asked, str):
        effect = "is the negative prompt" if config.guidance_scale > 1 else "has no effect at guidance scale 1"
        return f"{asked!r}, the reward token of {config.lora}, {effect}."
    effect = "are the negative prompts" if config.guidance_scale > 1 else "have no effect at guidance scale 1"
    words = ", ".join(f"{text!r} (weight {weight:g})" for text, weight in asked.items())
    return f"{words}, the reward tokens of {config.lora}, {effect}."


if __name__ == "__main__":
    launch(GenerateConfig, main)
