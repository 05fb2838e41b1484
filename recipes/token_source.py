"""Where a reward-token run has its images from: those that are selected from, scored, and ordinary ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from align.model import Sampling
from align.samples import SampleRow
from recipes.configs.filter_finetune import SamplingSettings
from recipes.configs.reward_token import RewardTokenConfig
from recipes.configs.token_settings import SourceSettings
from recipes.image_sources import column_of
from recipes.image_texts import Captions
from recipes.images import Item, find_items, foreign_items, sample_items, store_of
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


def read_source(source: SourceSettings) -> Source | None:
    """The images of the folder, if there is one; of a run of align those it drew first, not those it judged by.

    Raises:
        ValueError: No image, one without a caption, or without the score that was asked for.
    """
    if source.train_data_dir is None:
        return None
    if source.score_column is None:
        return Source(_items(source.train_data_dir), None)
    items = find_items([str(source.train_data_dir)], Captions())
    column = column_of(source.train_data_dir, source.score_column)
    missing = [item.name for item in items if item.name not in column]
    if missing:
        raise ValueError(
            f"{missing[0]} has no {source.score_column!r} in the metadata of {source.train_data_dir} "
            f"({len(missing):,} of {len(items):,} images have none). Add it, or leave out source.score_column."
        )
    return Source(items, torch.tensor([column[item.name] for item in items], dtype=torch.float64))


def _items(folder: Path) -> list[Item]:
    """Those of a folder, table or run; of a run, what it drew first."""
    if store := store_of([str(folder)]):
        return foreign_items(store)
    if (folder / "evaluation").is_dir() and (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} is a run that has no images of its own in {folder / 'samples'}, and those in its other folders "
            "are what it judged by. Give a folder of images, such as rounds/1 of a run in rounds."
        )
    return find_items([str(folder)], Captions())


def drawing(judge: Judge, settings: SamplingSettings) -> Judge:
    """The judge, but for how images are drawn."""
    sampling = Sampling(**settings.model_dump(exclude={"batch_size"}))
    return replace(judge, sampling=sampling, batch_sizes=(settings.batch_size, judge.batch_sizes[1]))


def scored_source(
    config: RewardTokenConfig,
    judge: Judge,
    names: Sequence[str],
    prompts: Sequence[str],
    given: Source | None,
    folder: Path,
) -> tuple[Sequence[Item], Mapping[str, Float[Tensor, " image"]]]:
    """The images to select from, drawn if need be, and the score of each by the rewards of these names.

    The first one's may have come with the images.
    """
    if given is None:
        n, draw = config.source.samples_per_prompt, drawing(judge, config.source.sampling)
        drawn = draw(prompts, names, n, folder, config.seed)
        return sample_items(drawn.store), {name: drawn.scores[name][:, 0] for name in names}
    brought = {} if given.scores is None else {names[0]: given.scores}
    asked = {name: _scores(judge, name, given.items, folder) for name in names if name not in brought}
    return given.items, brought | asked


def _scores(judge: Judge, name: str, items: Sequence[Item], folder: Path) -> Float[Tensor, " image"]:
    problems: Problems = {}
    engine = Engine(name, judge.rewards[name], judge.model.device, judge.batch_sizes[1], problems)
    scores = score(items, engine, folder / "scores", judge.log, judge.accelerator)
    check_all(items, scores, problems)
    return scores[:, 0]


def ordinary_pictures(config: RewardTokenConfig, judge: Judge, prompts: Sequence[str], folder: Path) -> list[SampleRow]:
    """Regularisation images that the base model draws of the training prompts."""
    draw, seed = drawing(judge, config.source.sampling), config.seed + ORDINARY
    return [*draw(prompts, [], config.regularization.samples_per_prompt, folder / "ordinary", seed).rows]
