"""The rewards of a run, by their names: who selects, who only judges, and under which licence."""

from collections.abc import Iterable, Mapping, Sequence

from rewards.base import Reward
from rewards.names import find_cards, group_specs


def announce(names: Sequence[str]) -> None:
    """Print the paper and the weights' licence of each reward that has a card, before anything is loaded."""
    for name, card in [pair for spec in names for pair in find_cards(spec)]:
        print(f"{name}: {card.paper}; weights: {card.licence}")


def selector_and_holdouts(rewards: Sequence[str], holdouts: Sequence[str]) -> list[str]:
    """The name of the reward that selects (a weighted sum of several is one), then those of the hold-outs.

    Raises:
        ValueError: Several rewards without weights; a name twice.
    """
    names = group_specs(rewards)
    if len(names) > 1:
        raise ValueError(
            f"{' and '.join(names)} cannot both select. Give each a weight (NAME=WEIGHT), or move all but one to "
            "holdout_rewards."
        )
    return [*names, *(name for name in group_specs(holdouts) if name not in names)]


def selecting(rewards: Mapping[str, Reward]) -> str:
    """The name of the reward that selects: the first, which must give one number an image."""
    name = next(iter(rewards))
    check_single(rewards, [name])
    return name


def check_single(rewards: Mapping[str, Reward], names: Iterable[str]) -> None:
    """Raise a ValueError where one of these gives several scores, as it is not said which one selects."""
    for name in names:
        if len(rewards[name].dimensions) > 1:
            choices = " or ".join(f"{name}.{dimension}" for dimension in rewards[name].dimensions)
            raise ValueError(
                f"{name} gives several scores and one must select. Use {choices}, or weights (NAME=WEIGHT)."
            )
