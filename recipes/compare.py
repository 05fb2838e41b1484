"""Compare two folders of images of the same prompts, pair by pair.

    align compare runs/base runs/tuned --rewards sandbox-hps sandbox.gold:Gold --output_dir runs/compared --report

Each folder is scored as `align score` does it, into its own `scores/`, so that nothing is scored twice. Images are
paired by prompt, and within it by the closest tie there is (see recipes/pairing.py). Differences are B - A, with 95 %
bootstrap intervals over prompts.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align.device import pick_device, set_threads
from align.log import Log
from align.report.comparison import ComparisonReport, write_comparison
from align.report.page import Pair
from align.state import read_json, write_json
from recipes.comparison import Compared, compare_pairs
from recipes.comparison_text import as_json, as_table, notes
from recipes.configs.compare import CompareConfig
from recipes.configuration import launch
from recipes.pairing import Pairing, pair
from recipes.reward_names import announce
from recipes.score import score
from recipes.scoring import Engine, Problems
from recipes.settings import as_yaml
from recipes.sides import Side, open_sides
from rewards.base import Reward
from rewards.load import load_rewards
from rewards.names import group_specs

SHOWN, EXTREMES = 12, 6
"""Pairs on the page that do not look at the scores, and from either end of the prompts that moved."""


def main(config: CompareConfig, *, dry_run: bool = False) -> None:
    """Pair two folders, score what has no scores yet, and say what the pairs come to."""
    names = group_specs(config.rewards)
    check_place(config)
    with redirect_stdout(sys.stderr if config.format == "json" else sys.stdout):
        announce(names)
        sides = open_sides(config)
    pairing = pair(*(side.entries() for side in sides))
    if dry_run:
        images = " and ".join(f"{len(side.items):,}" for side in sides)
        pairs = f"{len(pairing.pairs):,} pairs of {len(pairing.prompts):,} prompts"
        print(f"{as_yaml(config)}plan: {images} images, {pairs}, {len(names)} rewards")
        return
    device = pick_device(config.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    set_threads()
    run(config, sides, load_rewards(names, device), pairing, device, accelerator)


def check_place(config: CompareConfig) -> None:
    """Refuse a folder with another comparison, or with a user's file of that name."""
    path = config.output_dir and config.output_dir / "comparison.json"
    if path and path.exists():
        before: Any = read_json(path)
        sides = [before.get(side) for side in "ab"] if isinstance(before, dict) else []
        folders = [side.get("folder") for side in sides if isinstance(side, dict)]
        if folders != [str(config.images_a), str(config.images_b)]:
            raise ValueError(
                f"{path} is not the comparison of {config.images_a} and {config.images_b}, and would be overwritten. "
                "Give another --output_dir."
            )


def run(
    config: CompareConfig,
    sides: tuple[Side, Side],
    rewards: Mapping[str, Reward],
    pairing: Pairing,
    device: torch.device,
    accelerator: Accelerator,
) -> list[Compared]:
    """Score, compare, print, and write what was asked for; on built objects."""
    scores = [score_side(side, rewards, config.batch_size, device, accelerator) for side in sides]
    compared = [
        compare_pairs(name, dimension, scores[0][name][:, column], scores[1][name][:, column], pairing, config.seed)
        for name, reward in rewards.items()
        for column, dimension in enumerate(reward.dimensions)
    ]
    if accelerator.is_main_process:
        publish(config, sides, pairing, compared)
    return compared


def score_side(
    side: Side, rewards: Mapping[str, Reward], batch_size: int | None, device: torch.device, accelerator: Accelerator
) -> dict[str, Float[Tensor, "image dimension"]]:
    """The scores of one folder, read where they are there already; NaN of an image that has none, which is told."""
    place, problems = side.folder / "scores", Problems()
    with Log(place, is_main=accelerator.is_main_process) as log:
        engines = {name: Engine(name, reward, device, batch_size, problems) for name, reward in rewards.items()}
        return {name: score(side.items, engine, place, log, accelerator) for name, engine in engines.items()}


def publish(config: CompareConfig, sides: tuple[Side, Side], pairing: Pairing, compared: Sequence[Compared]) -> None:
    """The comparison on the terminal, and in the folder that was asked for."""
    folders = [str(side.folder) for side in sides]
    files = [[entry.name for entry in side.entries()] for side in sides]
    content = as_json(folders, files, pairing, compared)
    as_text = json.dumps(content, indent=2, ensure_ascii=False)
    print(as_text if config.format == "json" else as_table(folders, files, pairing, compared))
    if config.output_dir:
        write_json(config.output_dir / "comparison.json", content)
    if config.output_dir and config.report:
        path = config.output_dir / "comparison.html"
        write_comparison(path, page(sides, files, pairing, compared))
        print(f"report: {path}", file=sys.stderr if config.format == "json" else sys.stdout)


def page(
    sides: tuple[Side, Side], files: Sequence[Sequence[str]], pairing: Pairing, compared: Sequence[Compared]
) -> ComparisonReport:
    """The page's contents; the first reward's first dimension is the headline."""
    headline = compared[0]

    def drawn(positions: Sequence[int]) -> list[Pair]:
        return [draw(sides, pairing, headline, position) for position in positions]

    left, right = ([names[place] for place in places] for names, places in zip(files, pairing.unpaired, strict=True))
    return ComparisonReport(
        folders=(str(sides[0].folder), str(sides[1].folder)),
        rows=[one.row for one in compared],
        prompts=len(headline.moves),
        unit=headline.over,
        pairs=drawn([move.pairs[0] for move in headline.moves[:SHOWN]]),
        gained=drawn([move.middle for move in headline.gained[:EXTREMES]]),
        lost=drawn([move.middle for move in headline.lost[:EXTREMES]]),
        changes={one.name: [move.difference for move in one.moves] for one in compared},
        notes=notes(pairing, compared),
        unpaired=(left, right),
    )


def draw(sides: tuple[Side, Side], pairing: Pairing, headline: Compared, position: int) -> Pair:
    """Both images of a pair."""
    places = pairing.pairs[position]
    items = [side.items[place] for side, place in zip(sides, places, strict=True)]
    seeds = {side.rows[place].seed if side.rows else None for side, place in zip(sides, places, strict=True)}
    seed = seeds.pop() if len(seeds) == 1 else None
    return Pair(items[0].text, seed, items[0].image(), items[1].image(), *headline.scores[position].tolist())


if __name__ == "__main__":
    launch(CompareConfig, main)
