"""A learned embedding in place of the identifier: taught before the LoRA, and left beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusers.loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE

from align.encoded import Picture
from align.finetune import LoraTraining
from align.learned_token import learn_token
from align.state import atomic_path
from recipes.configs.reward_token import RewardTokenConfig
from recipes.filter_plan import lora_training
from recipes.judge import Judge
from recipes.token_words import learned_token


def learn_embedding(config: RewardTokenConfig, judge: Judge, chosen: Sequence[Picture], folder: Path) -> None:
    """Teach the judge's model the word that stands for the identifier, from the images whose captions hold it."""
    word, place, accelerator = learned_token(config), folder / "embedding", judge.accelerator
    failing = [picture for picture in chosen if word in picture.text]
    how = embedding_training(config)
    learn_token(judge.model, word, config.identifier, failing, how, place, judge.log, accelerator)
    beside = folder / "lora" / TEXT_INVERSION_NAME_SAFE
    if accelerator.is_main_process and not beside.exists():
        with atomic_path(beside) as temporary:
            shutil.copyfile(place / TEXT_INVERSION_NAME_SAFE, temporary)
    accelerator.wait_for_everyone()


def embedding_training(config: RewardTokenConfig) -> LoraTraining:
    """As the LoRA is trained, but for steps and step size; no ordinary image holds the word."""
    train = config.train.model_copy(update=config.embedding.model_dump())
    return lora_training(train, config.lora, 0.0, config.seed)
