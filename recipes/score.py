"""Score images, each reward into a file of its own.

    align score runs/base --rewards sandbox-hps sandbox.gold:Gold
    align score photos --prompt "a red circle" --rewards sandbox-hps --report

Takes a run, a folder of generated samples, or images of any origin (see recipes/images.py), and writes
`scores/SLUG.parquet`: the image's id and model, and a float32 column for each dimension. Images with scores are not
scored again; a killed run loses one batch. Images that cannot be read are told and left out.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align.device import pick_device, set_threads
from align.log import Log
from recipes.configs.score import ScoreConfig
from recipes.configuration import launch
from recipes.critiques import Critiques
from recipes.image_texts import Captions
from recipes.images import Item, count_transparent, find_items, sample_items, store_of
from recipes.reward_names import announce
from recipes.score_file import Scores, held, merge, partials, read_scores, write_partial
from recipes.score_output import Scored, publish
from recipes.score_place import check_place
from recipes.scoring import Engine, Problems
from recipes.settings import as_yaml
from rewards.base import Critic, Reward
from rewards.load import load_rewards
from rewards.names import group_specs, slug


@dataclass(frozen=True)
class Work:
    """What is to be scored, and where the scores go."""

    items: Sequence[Item]
    folder: Path


def main(config: ScoreConfig, *, dry_run: bool = False) -> None:
    """Score images by every reward that is named, and tell how the scores lie."""
    names = group_specs(config.rewards)
    with redirect_stdout(sys.stderr if config.format == "json" else sys.stdout):
        announce(names)
        work = gather(config)
        if dry_run:
            print(f"{as_yaml(config)}plan: {len(work.items):,} images, {len(names)} rewards, into {work.folder}")
            return
        device = pick_device(config.device)
        accelerator = Accelerator(cpu=device.type == "cpu")
        set_threads()
        scored = run(config, work, load_rewards(names, device), device, accelerator)
    if accelerator.is_main_process:
        publish(config, scored, work.folder)
    scored.check(config.strict)


def gather(config: ScoreConfig) -> Work:
    """The images, with their prompts; generated ones have theirs, and keep their order."""
    names = [str(path) for path in config.images]
    store = store_of(names)
    if store is None:
        items = find_items(names, Captions(config.prompt, config.prompts))
        place = Path(names[0]) if len(names) == 1 and Path(names[0]).is_dir() else Path()
    elif config.prompt is not None or config.prompts is not None:
        raise ValueError(f"{names[0]} holds generated images, which have their prompts. Leave out --prompt, --prompts.")
    else:
        items, place = sample_items(store), Path(names[0])
    if transparent := count_transparent(items):
        print(f"{transparent:,} of {len(items):,} images have transparent parts; they are flattened on white.")
    folder = config.output_dir or place / "scores"
    check_place(folder, config.images)
    return Work(items, folder)


def run(
    config: ScoreConfig, work: Work, rewards: Mapping[str, Reward], device: torch.device, accelerator: Accelerator
) -> Scored:
    """Score by each reward; on built objects."""
    problems: Problems = {}
    scores: dict[str, Float[Tensor, "image dimension"]] = {}
    critiques: dict[str, Critiques] = {}
    with Log(work.folder, is_main=accelerator.is_main_process) as log:
        for name, reward in rewards.items():
            engine = Engine(name, reward, device, config.batch_size, problems)
            if isinstance(reward, Critic) and (config.heatmaps or config.report):
                critiques[name] = Critiques(work.folder / "heatmaps" / slug(name), reward.heatmaps)
                engine.critiques = critiques[name]
            scores[name] = score(work.items, engine, work.folder, log, accelerator)
    dimensions = {name: reward.dimensions for name, reward in rewards.items()}
    return Scored(work.items, scores, dimensions, problems, critiques)


def score(
    items: Sequence[Item], engine: Engine, folder: Path, log: Log, accelerator: Accelerator
) -> Float[Tensor, "image dimension"]:
    """Score images by one reward into `folder/SLUG.parquet`, and return the scores in their order.

    Batches are formed before anything is skipped or shared out, so a resumed run ends with the bits of one that was
    never stopped, with any number of processes (to rounding, for images that align did not make: their prompts are
    remembered from batch to batch). Scores of other images that the file has are kept.

    Arguments:
        items: The images.
        engine: The reward, and how it is called; it notes what cannot be scored, whose rows here are NaN.
        folder: For the file; `rewards.load.slug` makes its name of the reward's.
        log: Shows the progress, in images.
        accelerator: The processes that share the work, batch by batch.

    Raises:
        ValueError: Scores of another shape than promised, or a file with other dimensions.
    """
    keys, dimensions = [item.key for item in items], engine.reward.dimensions
    final = folder / f"{slug(engine.name)}.parquet"
    with held(final, accelerator):
        merge(final, keys, dimensions, accelerator)
        _score(items, engine, final, log, accelerator)
        merge(final, keys, dimensions, accelerator)
    return _in_order(keys, read_scores(final, dimensions), len(dimensions))


def _score(items: Sequence[Item], engine: Engine, final: Path, log: Log, accelerator: Accelerator) -> None:
    """This process's share of what has no scores yet, into a file of its own."""
    known = read_scores(final, engine.reward.dimensions)
    batches = [items[start : start + engine.size] for start in range(0, len(items), engine.size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    todo = [left for batch in mine if (left := engine.left(batch, known))]
    total = sum(map(len, mine))
    done = total - sum(map(len, todo))
    if done:
        print(f"{engine.name}: {done:,} of {total:,} images have their scores in {final}", file=sys.stderr)
    own = partials(final) / f"{accelerator.process_index}.jsonl"
    with own.open("a", encoding="utf-8") as file, log.progress(total, f"score {engine.name}", done) as progress:
        for batch, new in engine.scores(todo):
            write_partial(file, new)
            progress.update(len(batch))
    accelerator.wait_for_everyone()


def _in_order(keys: Sequence[tuple[str, str]], scores: Scores, width: int) -> Float[Tensor, "image dimension"]:
    return torch.tensor([scores.get(key, [float("nan")] * width) for key in keys])


if __name__ == "__main__":
    launch(ScoreConfig, main)
