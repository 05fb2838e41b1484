"""Make images for a file of prompts.

    align generate --model sandbox --prompts prompts.txt --samples_per_prompt 4 --output_dir runs/base

The folder is a Hugging Face imagefolder. A killed run is continued by the same command.
"""

from accelerate import Accelerator

from align.device import pick_device, pick_dtype, set_threads
from align.families.load import load_model
from align.generate import generate
from align.log import Log
from align.lora import read_reward_token
from align.model import Sampling
from recipes.configs.generate import GenerateConfig
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
    model = load_model(path, device, pick_dtype(device), config.lora)
    sampling = Sampling(config.num_inference_steps, config.guidance_scale, negative_prompt(config))
    n, size = config.samples_per_prompt, config.batch_size
    with Log(config.output_dir, is_main=accelerator.is_main_process) as log:
        generate(model, prompts, n, config.output_dir, config.seed, size, sampling, log, accelerator)
    if truncated := model.count_truncated(prompts):
        accelerator.print(
            f"{truncated} of {len(prompts)} prompts are longer than the model reads; their ends were not seen."
        )
    accelerator.print(f"{config.output_dir} holds {len(prompts) * n:,} images.")


def negative_prompt(config: GenerateConfig) -> str:
    """What the user says, else the words that the LoRA asks for, which are told."""
    asked = read_reward_token(config.lora) if config.lora and not config.no_reward_token else None
    if config.negative_prompt is not None or asked is None:
        return config.negative_prompt or ""
    effect = "is the negative prompt" if config.guidance_scale > 1 else "has no effect at guidance scale 1"
    print(f"{asked!r}, the reward token of {config.lora}, {effect}.")
    return asked


if __name__ == "__main__":
    launch(GenerateConfig, main)
