"""Score generated images, each reward into a file of its own.

    align score runs/base --rewards sandbox-hps sandbox.gold:Gold

Reads a folder of samples (or a run, which has them in `samples/`) and writes `scores/SLUG.parquet` into it: image_id,
model, and a float32 column for each dimension. Images with scores are not scored again; a killed run loses one batch.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align.device import pick_device, set_threads
from align.log import Log
from align.samples import SampleRow, SampleStore
from recipes.configs.score import ScoreConfig
from recipes.configuration import launch
from recipes.reward_names import announce
from recipes.score_file import Scores, key_of, merge, partials, read_scores
from recipes.settings import as_yaml
from rewards.base import Reward
from rewards.load import group_specs, load_rewards, slug


def main(config: ScoreConfig, *, dry_run: bool = False) -> None:
    """Score a folder by every reward that is named, and print their means."""
    folder, names = config.images, group_specs(config.rewards)
    store = SampleStore(folder / "samples" if (folder / "samples").is_dir() else folder)
    rows = store.rows()
    announce(names)
    if dry_run:
        print(f"{as_yaml(config)}plan: {len(rows):,} images, {len(names)} rewards, into {folder / 'scores'}")
        return
    device = pick_device(config.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    set_threads()
    rewards = load_rewards(names, device)
    with Log(folder, is_main=accelerator.is_main_process) as log:
        run(store, rewards, folder / "scores", config.batch_size, device, log, accelerator)


def run(
    store: SampleStore,
    rewards: Mapping[str, Reward],
    folder: Path,
    batch_size: int,
    device: torch.device,
    log: Log,
    accelerator: Accelerator,
) -> dict[str, Float[Tensor, "image dimension"]]:
    """Score a store by each reward, print the summary, and return the scores by the rewards' names; see `score`."""
    scores = {
        name: score(store, name, reward, folder, batch_size, device, log, accelerator)
        for name, reward in rewards.items()
    }
    accelerator.print(summarise(scores, {name: reward.dimensions for name, reward in rewards.items()}))
    return scores


def score(
    store: SampleStore,
    name: str,
    reward: Reward,
    folder: Path,
    batch_size: int,
    device: torch.device,
    log: Log,
    accelerator: Accelerator,
) -> Float[Tensor, "image dimension"]:
    """Score a store's images by one reward into `folder/SLUG.parquet`, and return the scores in the store's order.

    Batches are formed before anything is skipped or shared out, so a resumed run ends with the bits of one that was
    never stopped, with any number of processes.

    Arguments:
        store: A complete store.
        name: The reward's name on the command line; `rewards.load.slug` makes the file's name of it.
        reward: What scores.
        folder: For the file; scores of other images that it has are kept.
        batch_size: Images scored at once.
        device: Where the reward is.
        log: Shows the progress, in images.
        accelerator: The processes that share the work, batch by batch.

    Raises:
        ValueError: A score that is not finite or has another shape than promised, or a file with other dimensions.
    """
    rows, final = store.rows(), folder / f"{slug(name)}.parquet"
    merge(final, rows, reward.dimensions, accelerator)
    scores = read_scores(final, reward.dimensions)
    own = partials(final) / f"{accelerator.process_index}.jsonl"
    own.parent.mkdir(exist_ok=True)
    with own.open("a", encoding="utf-8") as file, log.progress(len(rows), f"score {name}") as progress:
        for number, batch in enumerate(_batches(rows, batch_size)):
            is_own = number % accelerator.num_processes == accelerator.process_index
            if is_own and not all(key_of(row) in scores for row in batch):
                new = _score(store, batch, name, reward, device)
                file.write(json.dumps([[*key, *values] for key, values in new.items()]) + "\n")
                file.flush()
            progress.update(len(batch))
    accelerator.wait_for_everyone()
    merge(final, rows, reward.dimensions, accelerator)
    scores = read_scores(final, reward.dimensions)
    return torch.tensor([scores[key_of(row)] for row in rows])


def summarise(scores: Mapping[str, Float[Tensor, "image _"]], dimensions: Mapping[str, Sequence[str]]) -> str:
    """A table of the mean, the standard deviation and the number of scores of each reward and dimension."""
    width = max(map(len, ["reward", *scores]))
    lines = [f"{'reward':<{width}} {'dimension':<14} {'mean':>9} {'sd':>9} {'n':>9}"]
    for name, values in scores.items():
        means, sds = values.double().mean(0).tolist(), values.double().std(0, correction=0).tolist()
        lines += [
            f"{name:<{width}} {dimension:<14} {mean:>9.4f} {sd:>9.4f} {len(values):>9,}"
            for dimension, mean, sd in zip(dimensions[name], means, sds, strict=True)
        ]
    return "\n".join(lines)


def _batches(rows: Sequence[SampleRow], batch_size: int) -> Iterator[Sequence[SampleRow]]:
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def _score(store: SampleStore, rows: Sequence[SampleRow], name: str, reward: Reward, device: torch.device) -> Scores:
    with torch.no_grad():
        values = reward(store.load(rows).to(device), [row.text for row in rows]).float()
    expected = (len(rows), len(reward.dimensions))
    if tuple(values.shape) != expected:
        raise ValueError(
            f"{name} gave scores of shape {tuple(values.shape)} where (images, dimensions) are {expected}. Mend it."
        )
    for row, scores in zip(rows, values.tolist(), strict=True):
        if not all(map(math.isfinite, scores)):
            raise ValueError(
                f"{name} gave {scores} for {row.path} ({row.text!r}); scores must be finite. Mend the reward or the "
                "image and run the same command again: the scores so far are kept."
            )
    return dict(zip(map(key_of, rows), values.tolist(), strict=True))


if __name__ == "__main__":
    launch(ScoreConfig, main)
