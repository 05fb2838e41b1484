"""What a filter_finetune run will do, from its configuration, before anything is made."""

from collections.abc import Sequence
from pathlib import Path

from align.finetune import LoraTraining
from align.train import TrainSettings
from recipes.configs.filter_finetune import FilterFinetuneConfig, LoopSettings, LoraSettings


def check_held_out(path: Path, prompts: Sequence[str]) -> None:
    """Raise a ValueError where there are too few prompts for an interval."""
    if len(prompts) < 2:
        raise ValueError(f"{path} has one prompt; the comparison resamples prompts and needs two or more. Add some.")


def plan(config: FilterFinetuneConfig, prompts: int, held_out: int) -> str:
    """How much work a run is."""
    candidates = prompts * config.samples_per_prompt
    pairs = held_out * config.evaluate.samples_per_prompt
    train = config.train
    looks = len({*range(0, train.max_train_steps + 1, train.validation_steps), train.max_train_steps})
    batch = config.train.train_batch_size * config.train.gradient_accumulation_steps
    return (
        f"plan: {f'{config.rounds} rounds, each of ' * (config.rounds > 1)}{candidates:,} candidates of {prompts:,} "
        f"prompts and {config.train.max_train_steps:,} training steps of {batch} images a process, with "
        f"{looks} looks at {min(held_out, config.num_validation_prompts)} prompts; "
        f"{(1 + config.rounds) * pairs:,} images of {held_out:,} held-out prompts; into {config.output_dir}"
    )


def lora_training(
    train: LoopSettings, lora: LoraSettings, regularization: float, seed: int, steps_before: int = 0
) -> LoraTraining:
    """The settings of a fine-tuning; `regularization` is the share of ordinary images."""
    own = {"train_batch_size", "proportion_empty_prompts", "min_timestep", "snr_gamma", "noise_offset"}
    elsewhere = {"regularization", "validation_steps", "mixed_precision"}
    loop = TrainSettings(**train.model_dump(exclude=own | elsewhere), seed=seed, steps_before=steps_before)
    return LoraTraining(**lora.model_dump(), **train.model_dump(include=own), regularization=regularization, loop=loop)
