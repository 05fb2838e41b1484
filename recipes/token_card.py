"""The model card of a reward-token run: what the words mean, how to use them and what they are worth."""

from collections.abc import Sequence
from pathlib import Path

from recipes.card_file import write_card_file
from recipes.configs.reward_token import RewardTokenConfig
from recipes.reward_names import selector_and_holdouts
from recipes.token_choice import Choice
from recipes.token_judge import Comparison
from recipes.token_words import learned_token, negative, prefix
from rewards.names import find_cards


def write_token_card(
    folder: Path, config: RewardTokenConfig, choice: Choice, comparisons: Sequence[Comparison]
) -> Path:
    """Write the card and return its path, see `write_card_file`; the first comparison's first row is the headline."""
    judges = selector_and_holdouts(config.rewards, config.holdout_rewards)
    words = negative(config)
    return write_card_file(
        folder,
        "token_card.md.jinja",
        config,
        config.pretrained_model_name_or_path,
        selector=judges[0],
        choice=choice,
        choosers=list(dict.fromkeys(group.reward for group in choice.groups)),
        learned=learned_token(config) if config.embedding.max_train_steps else "",
        prefix=prefix(config),
        negatives=[words] if isinstance(words, str) else [*words],
        comparisons=comparisons,
        first=comparisons[0].rows[0],
        licences={
            name: card.licence
            for spec in dict.fromkeys([*judges, *config.dimensions.values()])
            for name, card in find_cards(spec)
        },
    )
