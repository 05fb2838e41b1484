"""The words of a reward-token run: what stands before captions, and what is asked for and led away from afterwards."""

from collections.abc import Mapping

from align.lora import LEARNED_TOKEN, PROMPT_PREFIX, token_header
from recipes.configs.reward_token import RewardTokenConfig, slug


def identifiers(config: RewardTokenConfig) -> list[str]:
    """All that may stand before a caption."""
    return [*config.dimensions] or [*config.level_identifiers] or [identifier(config)]


def identifier(config: RewardTokenConfig) -> str:
    """The one there is: its words, or the word whose embedding is learned in their place."""
    return f"{learned_token(config)} " if config.embedding.max_train_steps else config.identifier


def learned_token(config: RewardTokenConfig) -> str:
    """The word of the learned embedding, such as <weird-image>."""
    return f"<{slug(config.identifier)}>"


def negative(config: RewardTokenConfig) -> str | Mapping[str, float]:
    """What is led away from: all dimensions alike, the worst level, or the identifier."""
    if config.dimensions:
        return dict.fromkeys(config.dimensions, 1.0)
    return config.level_identifiers[0] if config.level_identifiers else identifier(config)


def prefix(config: RewardTokenConfig) -> str:
    """What is asked for: the best level, or nothing."""
    return config.level_identifiers[-1] if config.level_identifiers else ""


def header(config: RewardTokenConfig) -> dict[str, str]:
    """What the LoRA's file says of them."""
    said = token_header(negative(config)) | ({PROMPT_PREFIX: prefix(config)} if prefix(config) else {})
    return said | ({LEARNED_TOKEN: learned_token(config)} if config.embedding.max_train_steps else {})


def spoken(words: str) -> str:
    """Words in a title."""
    return repr(words.strip())
