"""Which images a reward-token run is trained on, and the words before their captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from align.select import Outstanding, levels_by_rank, softmax_nonpreferred, softmax_preferred
from align.sharpness import sharpness
from recipes import token_words
from recipes.configs.reward_token import RewardTokenConfig
from recipes.images import Item

Scores = Mapping[str, Float[Tensor, " image"]]
"""Of all images, by the name of each reward, the selecting one first."""


@dataclass(frozen=True)
class Group:
    """Chosen images with the same words before their captions.

    Attributes:
        name: For people.
        words: Empty for preferred images.
        reward: The one that chose them.
        places: The images, by their place among all.
        shares: The softmax share of each among the images of its prompt; none of levels.
        found: How many there were, before chance took these.
    """

    name: str
    words: str
    reward: str
    places: Sequence[int]
    shares: Sequence[float]
    found: int


@dataclass(frozen=True)
class Choice:
    """What was chosen of scored images of so many prompts; `blurry` were left out before."""

    groups: Sequence[Group]
    prompts: int
    blurry: int

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(group.places):,}{f' of {group.found:,}' * (group.found > len(group.places))} {group.name}"
            for group in self.groups
        )
        return f"{counts}, of {self.prompts:,} prompts ({self.blurry:,} images left out as blurry)"


def choose(config: RewardTokenConfig, items: Sequence[Item], scores: Scores, seed: int) -> Choice:
    """Images that stand out among those of their prompt, at the top and at the bottom; or all, by their level.

    Raises:
        ValueError: All images are blurry, no prompt has images enough, or nothing stands out.
    """
    sharp = _sharp(items, config.select.min_sharpness)
    number = {text: place for place, text in enumerate(dict.fromkeys(item.text for item in items))}
    prompts = torch.tensor([number[items[place].text] for place in sharp])
    left = {name: values[sharp] for name, values in scores.items()}
    groups = _levels(config, left, prompts) if config.level_identifiers else _outliers(config, left, prompts, seed)
    placed = [replace(group, places=[sharp[i] for i in group.places]) for group in groups]
    return Choice(placed, len(number), len(items) - len(sharp))


def _sharp(items: Sequence[Item], least: float) -> list[int]:
    if not least:
        return list(range(len(items)))
    values = [sharpness(_image(item)) for item in items]
    if max(values) < least:
        raise ValueError(
            f"All {len(items):,} images are below select.min_sharpness = {least:g}; the sharpest has "
            f"{max(values):.4g}. Lower it, or set it to 0 to keep all."
        )
    return [place for place, value in enumerate(values) if value >= least]


def _levels(config: RewardTokenConfig, scores: Scores, prompts: Int[Tensor, " image"]) -> list[Group]:
    name, values = next(iter(scores.items()))
    words = config.level_identifiers
    level = levels_by_rank(values, prompts, len(words), config.select.min_group_size)
    places = [(level == number).nonzero()[:, 0].tolist() for number in range(len(words))]
    return [
        Group(f"of level {number}", text, name, images, [], len(images))
        for number, (text, images) in enumerate(zip(words, places, strict=True), start=1)
    ]


def _outliers(config: RewardTokenConfig, scores: Scores, prompts: Int[Tensor, " image"], seed: int) -> list[Group]:
    """The preferred ones, by the selecting reward, and the failing ones of each dimension, or by the same reward."""
    selector, settings = next(iter(scores)), config.select
    limits = settings.scale, settings.min_group_size, settings.margin
    best = softmax_preferred(scores[selector], prompts, *limits)
    if config.dimensions:
        failing = [_failing(config, words, reward, scores, prompts) for words, reward in config.dimensions.items()]
    else:
        worst = softmax_nonpreferred(scores[selector], prompts, *limits)
        failing = [_group("non-preferred", token_words.identifier(config), selector, worst)]
    preferred = _without(best, selector, failing)
    return [preferred, *(_some(config, preferred, group, seed + number) for number, group in enumerate(failing))]


def _failing(
    config: RewardTokenConfig, words: str, reward: str, scores: Scores, prompts: Int[Tensor, " image"]
) -> Group:
    settings = config.select
    try:
        worst = softmax_nonpreferred(
            scores[reward], prompts, settings.dimension_scale, settings.min_group_size, settings.margin
        )
    except ValueError as error:
        raise ValueError(f"By {reward}, with select.dimension_scale {settings.dimension_scale:g}: {error}") from error
    return _group(f"failing {reward}", words, reward, worst)


def _group(name: str, words: str, reward: str, found: Outstanding) -> Group:
    return Group(name, words, reward, found.images, found.shares, len(found.images))


def _without(best: Outstanding, reward: str, failing: Sequence[Group]) -> Group:
    """The preferred images that fail in nothing."""
    bad = {place for group in failing for place in group.places}
    kept = [(place, share) for place, share in zip(best.images, best.shares, strict=True) if place not in bad]
    if not kept:
        raise ValueError(
            f"All {len(best.images):,} preferred images fail in a dimension. Raise select.margin, so that fewer "
            "fail, or select by other rewards."
        )
    return Group("preferred", "", reward, [place for place, _ in kept], [share for _, share in kept], len(kept))


def _some(config: RewardTokenConfig, preferred: Group, group: Group, seed: int) -> Group:
    """Of the non-preferred a share by chance, in their order."""
    wanted = max(1, round(config.select.negative_ratio * len(preferred.places)))
    order = torch.randperm(len(group.places), generator=torch.Generator().manual_seed(seed))[:wanted]
    taken = sorted(order.tolist())
    return replace(group, places=[group.places[i] for i in taken], shares=[group.shares[i] for i in taken])


def _image(item: Item) -> Float[Tensor, "3 h w"]:
    try:
        return item.image()
    except ValueError as error:
        raise ValueError(f"{item.name}: {error}") from error
