"""Train a critic on rich human feedback: RAHF (arXiv 2312.10240), or the ResNet-50 that the paper compares it with.

    align train-reward rahf --config rahf
    accelerate launch recipes/train_reward.py rahf --config recipes/configs/train_reward/rahf.yaml

captions (if asked for) -> scores, heatmaps and misaligned words -> the weights that agree best with people on the dev
split -> `reward/`, which `align score --rewards FOLDER` loads. Every phase continues where it was stopped.

Departures from the paper:
1. AdamW at 2e-5 with a cosine schedule instead of 0.015 and the reciprocal square root, as all PyTorch ports have it.
2. The stage of captions takes any folder of images with captions; the paper's was WebLI.
3. Real photos can be mixed in as negatives.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from align.ahead import Ahead
from align.device import pick_device, set_threads
from align.log import Log
from align.state import atomic_path
from align.train import Batches, Loss, TrainSettings, Validation, check_launch, train
from recipes.configs.train_reward import TrainRewardConfig
from recipes.configuration import launch
from recipes.learner import Learner, make_learner
from recipes.learner_watch import BEST, best_step, watch
from recipes.photos import read_captioned, read_photos
from recipes.rich_rows import read_rows
from recipes.run_folder import run_folder
from recipes.sandbox_feedback import resolve_data
from recipes.settings import as_yaml
from rewards.cards import FOLDER_CARD
from rewards.datasets.rich_feedback import RichFeedback
from rewards.hub import sha256
from rewards.training.feedback import FeedbackBatches, Photo, collate, example
from rewards.training.rahf import RahfBatch
from rewards.weights import WEIGHTS

LOOP = set(TrainSettings.__dataclass_fields__) - {"steps_before", "seed"}
"""What the loop takes from the settings as it is."""


def main(config: TrainRewardConfig, *, dry_run: bool = False) -> None:
    """Read the data, build the network, and run; or say what would be run."""
    if dry_run:
        print(as_yaml(config) + plan(config))
        return
    threads, device = set_threads(), pick_device(config.device)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision, cpu=device.type == "cpu")
    check_launch(accelerator)
    learner = make_learner(config, device)
    data, _ = resolve_data(config.data)
    with run_folder(config.output_dir, config, str(device), threads, accelerator) as folder:
        rows, _ = read_rows(data, config.train_split, config.max_missing)
        dev = read_rows(data, config.dev_split, config.max_missing)[0] if config.dev_split else []
        run(config, learner, rows, dev, folder, accelerator)


def run(
    config: TrainRewardConfig,
    learner: Learner,
    rows: Sequence[RichFeedback],
    dev: Sequence[RichFeedback],
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """Both stages, and what comes of them, on built objects."""
    trackers, settings = sorted(set(config.report_to) - {"none"}), config.model_dump(mode="json")
    stage = partial(_stage, config, learner, accelerator)
    photos, negatives = read_captioned(config.captions.train_data_dir), read_photos(config.negatives.train_data_dir)
    if photos and learner.captioning:
        batches, place = _batches(config, learner, [], photos, 1.0), folder / "captions"
        # a run of its own in the trackers: its steps count from 1, as do those of the second stage
        with Log(place, trackers, f"{folder.name}-captions", settings, accelerator.is_main_process) as log:
            stage(batches, learner.captioning, config.captions.max_train_steps, place, log, None)
    with Log(folder, trackers, folder.name, settings, accelerator.is_main_process) as log:
        batches = _batches(config, learner, rows, negatives, config.negatives.proportion)
        size = config.train.train_batch_size
        look = watch(learner, dev, folder, config.train.validation_steps, size, log, accelerator)
        stage(batches, learner.loss, config.train.max_train_steps, folder, log, look)
        if accelerator.is_main_process:
            publish(config, learner, rows, folder, accelerator.device)
            log.artifact(folder / "reward", "reward", "model")
        accelerator.wait_for_everyone()


def plan(config: TrainRewardConfig) -> str:
    """What a run would do, in a line."""
    steps, batch = config.train.max_train_steps, config.train.train_batch_size
    images = batch * config.train.gradient_accumulation_steps
    first = f"{config.captions.max_train_steps:,} steps on captions, then " if config.captions.train_data_dir else ""
    return f"plan: {first}{steps:,} steps of {images:,} images a process, into {config.output_dir / 'reward'}"


def publish(
    config: TrainRewardConfig, learner: Learner, rows: Sequence[RichFeedback], folder: Path, device: torch.device
) -> None:
    """Write `folder/reward`: the best weights, or the last where nothing was looked at, finished; and their card."""
    best = best_step(folder)
    if learner.finish:
        learner.finish(folder / BEST if best else None, once(learner, rows, config.train.train_batch_size, device))
    with atomic_path(folder / "reward") as temporary:
        if best and not learner.finish:
            shutil.copytree(folder / BEST, temporary)
        else:
            learner.write(temporary)
        card = describe(config, learner, best) | {"sha256": {WEIGHTS: sha256(temporary / WEIGHTS)}}
        (temporary / FOLDER_CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{folder / 'reward'} is written. Use it: align score IMAGES --rewards {folder / 'reward'}")


def once(learner: Learner, rows: Sequence[RichFeedback], size: int, device: torch.device) -> Iterator[RahfBatch]:
    """All images once, as they are."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield collate([example(row, learner.critic.preprocess, learner.size) for row in part]).to(device)


def describe(config: TrainRewardConfig, learner: Learner, best: dict[str, int | float] | None) -> dict[str, Any]:
    """The card of what was trained; its licence is that of its data and of the weights it started from."""
    return {
        "reward": learner.reward,
        "args": {},
        "dimensions": list(learner.critic.dimensions),
        "licence": "that of its training data and of the weights it started from",
        "paper": "arXiv 2312.10240",
        "commercial": "unclear",
        "trained_on": Path(config.data).name,
        "started_from": {key: value for key, value in config.network.model_dump().items() if value is not None},
        "selected": best,
    }


def _batches(
    config: TrainRewardConfig,
    learner: Learner,
    rows: Sequence[RichFeedback],
    photos: Sequence[Photo],
    negatives: float,
) -> FeedbackBatches:
    settings = config.train
    size, batch, augmented = learner.size, settings.train_batch_size, settings.augmentation
    return FeedbackBatches(rows, learner.critic.preprocess, size, batch, config.seed, augmented, photos, negatives)


def _stage(
    config: TrainRewardConfig,
    learner: Learner,
    accelerator: Accelerator,
    batches: Batches[RahfBatch],
    loss: Loss[RahfBatch],
    steps: int,
    folder: Path,
    log: Log,
    look: Validation | None,
) -> None:
    """One training, with batches made ahead."""
    given: dict[str, Any] = {name: value for name, value in config.train.model_dump().items() if name in LOOP}
    given["max_train_steps"] = steps
    settings = TrainSettings(**given, seed=config.seed)
    device = accelerator.device
    with Ahead(batches, config.train.dataloader_num_workers, accelerator.num_processes) as ahead:
        train(learner.network, lambda n: ahead(n).to(device), loss, settings, folder, log, accelerator, look)


if __name__ == "__main__":
    launch(TrainRewardConfig, main)
