"""A learned embedding in place of the identifier: taught before the LoRA, and left beside it."""

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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


@contextmanager
def taught(
    config: RewardTokenConfig, judge: Judge, chosen: Sequence[Picture], folder: Path
) -> Generator[None, None, None]:
    """While this lasts, the judge's model knows the word that stands for the identifier, if it is a learned one."""
    if not config.embedding.max_train_steps:
        yield
        return
    _learn(config, judge, chosen, folder)
    try:
        yield
    finally:
        judge.model.remove_token(learned_token(config))


def _learn(config: RewardTokenConfig, judge: Judge, chosen: Sequence[Picture], folder: Path) -> None:
    """From the images whose captions hold the word; the embedding comes beside the LoRA."""
    word, place, accelerator = learned_token(config), folder / "embedding", judge.accelerator
    failing = [picture for picture in chosen if word in picture.text]
    how = embedding_training(config)
    learn_token(judge.model, word, config.identifier, failing, how, place, judge.log, accelerator)
    if accelerator.is_main_process:
        with atomic_path(folder / "lora" / TEXT_INVERSION_NAME_SAFE) as temporary:
            shutil.copyfile(place / TEXT_INVERSION_NAME_SAFE, temporary)
    accelerator.wait_for_everyone()


def embedding_training(config: RewardTokenConfig) -> LoraTraining:
    """As the LoRA is trained, but for steps and step size; no ordinary image holds the word."""
    train = config.train.model_copy(update=config.embedding.model_dump())
    return lora_training(train, config.lora, 0.0, config.seed)
