"""What a reward-token run is trained on: images of one source, scored, chosen and captioned; and ordinary ones."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.model import Sampling
from align.samples import SampleRow
from align.select import Preferences, softmax_preferences
from align.sharpness import sharpness
from align.state import atomic_path
from recipes.configs.filter_finetune import SamplingSettings
from recipes.configs.reward_token import RewardTokenConfig, SoftmaxSettings, SourceSettings
from recipes.image_sources import column_of
from recipes.image_texts import Captions
from recipes.images import Item, find_items, sample_items
from recipes.judge import Judge, check_all
from recipes.score import score
from recipes.scoring import Engine, Problems

ORDINARY = 20_000
"""Added to the seed for ordinary images, so that they are others than those that are selected from."""


@dataclass(frozen=True)
class Source:
    """Images to select from; of a user's own they may bring their scores along."""

    items: Sequence[Item]
    scores: Float[Tensor, " image"] | None


@dataclass(frozen=True)
class Choice:
    """What was chosen of scored images, by their place among them.

    Attributes:
        liked: The preferred ones.
        disliked: The non-preferred ones that are trained on.
        shares: The softmax share of each of them in its group.
        preferences: All that stood out, of the sharp images.
        blurry: How many images were left out for their blur.
    """

    liked: Sequence[int]
    disliked: Sequence[int]
    shares: dict[int, float]
    preferences: Preferences
    blurry: int

    def __str__(self) -> str:
        found = self.preferences
        return (
            f"{len(self.liked):,} preferred and {len(self.disliked):,} of {len(found.nonpreferred):,} non-preferred "
            f"images, of {found.groups:,} prompts with images enough ({found.prompts:,} prompts; "
            f"{self.blurry:,} images left out as blurry)"
        )


def read_source(source: SourceSettings) -> Source | None:
    """The images of the folder, if there is one.

    Raises:
        ValueError: No image, one without a caption, or without the score that was asked for.
    """
    if source.train_data_dir is None:
        return None
    items = find_items([str(source.train_data_dir)], Captions())
    if source.score_column is None:
        return Source(items, None)
    column = column_of(source.train_data_dir, source.score_column)
    missing = [item.name for item in items if item.name not in column]
    if missing:
        raise ValueError(
            f"{missing[0]} has no {source.score_column!r} in the metadata of {source.train_data_dir} "
            f"({len(missing):,} of {len(items):,} images have none). Add it, or leave out source.score_column."
        )
    return Source(items, torch.tensor([column[item.name] for item in items], dtype=torch.float64))


def drawing(judge: Judge, settings: SamplingSettings) -> Judge:
    """The judge, but for how images are drawn."""
    sampling = Sampling(**settings.model_dump(exclude={"batch_size"}))
    return replace(judge, sampling=sampling, batch_sizes=(settings.batch_size, judge.batch_sizes[1]))


def scored_source(
    config: RewardTokenConfig, judge: Judge, selector: str, prompts: Sequence[str], given: Source | None, folder: Path
) -> tuple[Sequence[Item], Float[Tensor, " image"]]:
    """The images to select from, drawn if need be, and the selecting reward's score of each."""
    if given is None:
        n, draw = config.source.samples_per_prompt, drawing(judge, config.source.sampling)
        drawn = draw(prompts, [selector], n, folder, config.seed)
        return sample_items(drawn.store), drawn.scores[selector][:, 0]
    if given.scores is not None:
        return given.items, given.scores
    problems: Problems = {}
    engine = Engine(selector, judge.rewards[selector], judge.model.device, judge.batch_sizes[1], problems)
    scores = score(given.items, engine, folder / "scores", judge.log, judge.accelerator)
    check_all(given.items, scores, problems)
    return given.items, scores[:, 0]


def ordinary_pictures(config: RewardTokenConfig, judge: Judge, prompts: Sequence[str], folder: Path) -> list[SampleRow]:
    """Regularisation images that the base model draws of the training prompts."""
    draw, seed = drawing(judge, config.source.sampling), config.seed + ORDINARY
    return [*draw(prompts, [], config.regularization.samples_per_prompt, folder / "ordinary", seed).rows]


def choose(settings: SoftmaxSettings, items: Sequence[Item], scores: Float[Tensor, " image"], seed: int) -> Choice:
    """Of each prompt the image that stands out at the top, and at the bottom; of the latter, a share by chance.

    Raises:
        ValueError: All images are blurry, no prompt has images enough, or nothing stands out.
    """
    sharp = _sharp(items, settings.min_sharpness)
    number = {text: place for place, text in enumerate(dict.fromkeys(item.text for item in items))}
    groups = torch.tensor([number[items[place].text] for place in sharp])
    found = softmax_preferences(scores[sharp], groups, settings.scale, settings.min_group_size, settings.margin)
    wanted = max(1, round(settings.negative_ratio * len(found.preferred)))
    order = torch.randperm(len(found.nonpreferred), generator=torch.Generator().manual_seed(seed))[:wanted]
    taken = sorted(order.tolist())
    liked, disliked = [sharp[i] for i in found.preferred], [sharp[found.nonpreferred[i]] for i in taken]
    shares = dict(zip(liked, found.preferred_shares, strict=True))
    shares |= dict(zip(disliked, (found.nonpreferred_shares[i] for i in taken), strict=True))
    return Choice(liked, disliked, shares, found, len(items) - len(sharp))


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


def captions(config: RewardTokenConfig, choice: Choice, items: Sequence[Item]) -> list[str]:
    """What the images are trained with: preferred ones their prompts, the others the identifier before theirs."""
    seeded = torch.Generator().manual_seed(config.seed)
    count = len(choice.disliked)
    alone = torch.randperm(count, generator=seeded)[: round(config.proportion_identifier_alone * count)].tolist()
    texts = [config.identifier + items[place].text for place in choice.disliked]
    for place in alone:
        texts[place] = config.identifier
    return [*(items[place].text for place in choice.liked), *texts]


def export(
    texts: Sequence[str], choice: Choice, items: Sequence[Item], scores: Float[Tensor, " image"], out: Path
) -> None:
    """Copy what is trained on to an imagefolder, atomically, with its captions; one that is there already is kept.

    Training reads it from there, whatever it comes from, and knows the files by the time of their writing.
    """
    places = [*choice.liked, *choice.disliked]
    rows = [
        {
            "file_name": f"{number:06d}.{_kind(items[place])}",
            "text": text,
            "prompt": items[place].text,
            "is_preferred": number < len(choice.liked),
            "score": scores[place].item(),
            "share": choice.shares[place],
        }
        for number, (place, text) in enumerate(zip(places, texts, strict=True))
    ]
    lines, metadata = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), out / "metadata.jsonl"
    if metadata.exists() and metadata.read_text(encoding="utf-8") == lines:
        return
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for place, row in zip(places, rows, strict=True):
            (temporary / str(row["file_name"])).write_bytes(items[place].found.read())
        (temporary / metadata.name).write_text(lines, encoding="utf-8")


def _kind(item: Item) -> str:
    """The ending of a file with this image."""
    with Image.open(io.BytesIO(item.found.read())) as image:
        return str(image.format).lower()
