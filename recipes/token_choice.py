"""Which images a reward-token run is trained on, and the words before their captions."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from align.select import levels_by_rank, softmax_nonpreferred, softmax_preferences
from align.sharpness import sharpness
from align.state import atomic_path
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
    values = [sharpness(item.image()) for item in items]
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
    found = softmax_preferences(scores[selector], prompts, settings.scale, settings.min_group_size, settings.margin)
    if config.dimensions:
        failing = [_failing(config, words, reward, scores, prompts) for words, reward in config.dimensions.items()]
    else:
        words, low = token_words.identifier(config), found.nonpreferred
        failing = [Group("non-preferred", words, selector, low, found.nonpreferred_shares, len(low))]
    preferred = _without(found.preferred, found.preferred_shares, selector, failing)
    return [preferred, *(_some(config, preferred, group, seed + number) for number, group in enumerate(failing))]


def _failing(
    config: RewardTokenConfig, words: str, reward: str, scores: Scores, prompts: Int[Tensor, " image"]
) -> Group:
    settings = config.select
    try:
        places, shares = softmax_nonpreferred(
            scores[reward], prompts, settings.dimension_scale, settings.min_group_size, settings.margin
        )
    except ValueError as error:
        raise ValueError(f"By {reward}, with select.dimension_scale {settings.dimension_scale:g}: {error}") from error
    return Group(f"failing {reward}", words, reward, places, shares, len(places))


def _without(places: Sequence[int], shares: Sequence[float], reward: str, failing: Sequence[Group]) -> Group:
    """The preferred images that fail in nothing."""
    bad = {place for group in failing for place in group.places}
    kept = [(place, share) for place, share in zip(places, shares, strict=True) if place not in bad]
    if not kept:
        raise ValueError(
            f"All {len(places):,} preferred images fail in a dimension. Raise select.margin, so that fewer fail, or "
            "select by other rewards."
        )
    return Group("preferred", "", reward, [place for place, _ in kept], [share for _, share in kept], len(kept))


def _some(config: RewardTokenConfig, preferred: Group, group: Group, seed: int) -> Group:
    """Of the non-preferred a share by chance, in their order."""
    wanted = max(1, round(config.select.negative_ratio * len(preferred.places)))
    order = torch.randperm(len(group.places), generator=torch.Generator().manual_seed(seed))[:wanted]
    taken = sorted(order.tolist())
    return replace(group, places=[group.places[i] for i in taken], shares=[group.shares[i] for i in taken])


def captions(config: RewardTokenConfig, group: Group, items: Sequence[Item], seed: int) -> list[str]:
    """What the images of a group are trained with: its words before their prompts, or, of some, alone."""
    texts = [group.words + items[place].text for place in group.places]
    if group.words:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        for place in order[: round(config.proportion_identifier_alone * len(texts))]:
            texts[place] = group.words
    return texts


def export(config: RewardTokenConfig, choice: Choice, items: Sequence[Item], scores: Scores, out: Path) -> None:
    """Copy what is trained on to an imagefolder, atomically, with its captions; one that is there already is kept.

    Training reads it from there, whatever it comes from, and knows the files by the time of their writing.
    """
    plain = sum(not group.words for group in choice.groups)
    chosen = [
        (place, {"text": text, "words": group.words, "score": scores[group.reward][place].item(), **share})
        for number, group in enumerate(choice.groups)
        for place, text, share in zip(
            group.places, captions(config, group, items, config.seed + number - plain), _shares(group), strict=True
        )
    ]
    rows = [
        {"file_name": f"{number:06d}.{_kind(items[place])}", "prompt": items[place].text, **row}
        for number, (place, row) in enumerate(chosen)
    ]
    lines, metadata = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), out / "metadata.jsonl"
    if metadata.exists() and metadata.read_text(encoding="utf-8") == lines:
        return
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for (place, _), row in zip(chosen, rows, strict=True):
            (temporary / str(row["file_name"])).write_bytes(items[place].found.read())
        (temporary / metadata.name).write_text(lines, encoding="utf-8")


def _shares(group: Group) -> list[dict[str, float]]:
    return [{"share": share} for share in group.shares] or [{} for _ in group.places]


def _kind(item: Item) -> str:
    """The ending of a file with this image."""
    with Image.open(io.BytesIO(item.found.read())) as image:
        return str(image.format).lower()
