"""What a reward-token run will do, and whether its words can be tokens of the model, before anything is made."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from align.finetune import LoraTraining
from align.model import TextToImage
from align.prefixed import Prefixed
from recipes.configs.reward_token import RewardTokenConfig
from recipes.filter_plan import lora_training
from recipes.token_arms import CONTROL, ways
from recipes.token_words import identifiers, learned_token


def plan(config: RewardTokenConfig, images: int, prompts: int, held_out: int) -> str:
    """How much work a run is; `images` are those to select from."""
    train, evaluate = config.train, config.evaluate
    batch = train.train_batch_size * train.gradient_accumulation_steps
    ordinary = "a folder of" if config.regularization.train_data_dir else f"{ordinary_images(config, prompts):,}"
    arms = ways(config).arms
    learned = config.embedding.max_train_steps
    swept = 2 * len(set(evaluate.guidance_scales)) * held_out * evaluate.guidance_samples_per_prompt
    return (
        f"plan: {images:,} images of {prompts:,} prompts to select from, {ordinary} regularisation images; "
        f"{f'{learned:,} steps for the embedding, then ' if learned else ''}"
        f"{train.max_train_steps:,} training steps of {batch} images a process"
        f"{', and as many of the control' if any(arm.lora == CONTROL for arm in arms) else ''}; "
        f"{len(arms):,} x {held_out * evaluate.samples_per_prompt:,} images of {held_out:,} held-out prompts, and "
        f"{swept:,} at other guidance scales; into {config.output_dir}"
    )


def ordinary_images(config: RewardTokenConfig, prompts: int) -> int:
    """How many regularisation images the base model draws."""
    return prompts * config.regularization.samples_per_prompt


def training(config: RewardTokenConfig) -> LoraTraining:
    """How the LoRA is trained: of all images, ratio / (1 + ratio) are ordinary; an embedding's steps come first."""
    ratio = config.regularization.ratio
    before = config.embedding.max_train_steps
    return lora_training(config.train, config.lora, ratio / (1 + ratio), config.seed, before)


def control_training(config: RewardTokenConfig) -> LoraTraining:
    """How the control is: in the same way, on ordinary images alone; its steps are counted on from the other's."""
    before = config.embedding.max_train_steps + config.train.max_train_steps
    return lora_training(config.train, config.lora, 0.0, config.seed, before)


def check_identifiers(config: RewardTokenConfig, model: TextToImage, prompts: Sequence[str]) -> int:
    """How many prompts lose their end to the longest of the identifiers, see `check_identifier`."""
    with _told_of(config, model):
        return max(check_identifier(model, words, prompts) for words in identifiers(config))


@contextmanager
def _told_of(config: RewardTokenConfig, model: TextToImage) -> Generator[None, None, None]:
    """While this lasts, the model reads a word that is yet to be learned as one."""
    if not config.embedding.max_train_steps:
        yield
        return
    model.add_token(learned_token(config), config.identifier)
    try:
        yield
    finally:
        model.remove_token(learned_token(config))


def check_identifier(model: TextToImage, identifier: str, prompts: Sequence[str]) -> int:
    """How many prompts lose their end to the tokenizer's limit because the identifier stands before them.

    Raises:
        ValueError: It leaves no room for a prompt, or it is in some prompts already.
    """
    longer = Prefixed(model, identifier)
    if longer.count_truncated(["a"]):
        raise ValueError(
            f"The identifier {identifier!r} fills all the tokens that the model reads of a prompt; none is left for "
            "what is shown. Use a shorter one."
        )
    holding = [prompt for prompt in prompts if identifier.strip().lower() in prompt.lower()]
    if holding:
        raise ValueError(
            f"The identifier {identifier!r} is in {len(holding):,} of {len(prompts):,} prompts already, such as "
            f"{holding[0]!r}; there it would mean what it meant so far. Use words that no prompt has."
        )
    return longer.count_truncated(prompts) - model.count_truncated(prompts)
