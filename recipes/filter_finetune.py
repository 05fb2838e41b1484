"""Best-of-N filtering and LoRA fine-tuning, after section 5 of RichHF-18K (arXiv 2312.10240).

    accelerate launch recipes/filter_finetune.py --config recipes/configs/filter_finetune/sandbox.yaml

generate N candidates a prompt -> score -> keep the best above a threshold -> fine-tune a LoRA on them -> compare with the
base model on held-out prompts, seed by seed -> report. Every phase continues where it was stopped.

Departures from the paper:
1. Any reward, or weighted sum of rewards, selects; the paper filters by its own plausibility score.
2. A LoRA in the denoiser is trained; the paper fine-tunes the whole of Muse, which is not a diffusion model.
3. The comparison is measured by rewards, with hold-outs that did not select; the paper asks people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align import lora
from align.device import pick_device, pick_dtype, set_threads
from align.evaluate import RecoveredGap, Row, compare, recovered_gap
from align.families.load import load_model
from align.finetune import LoraTraining, train_lora
from align.generate import generate
from align.log import Log
from align.model import Sampling, TextToImage
from align.samples import SampleRow, SampleStore, export_imagefolder
from align.select import Selection, best_of_n, quantile_threshold
from align.state import write_json
from align.train import TrainSettings
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configuration import launch
from recipes.filter_report import report
from recipes.models import resolve_model
from recipes.prompts import read_prompts
from recipes.run_folder import run_folder
from recipes.score import run as score_all
from recipes.settings import as_yaml
from rewards.base import Reward
from rewards.load import find_cards, group_specs, load_rewards

Scores = Mapping[str, Float[Tensor, "image dimension"]]
"""Scores of a store's images, by the name of the reward."""


def main(config: FilterFinetuneConfig, *, dry_run: bool = False) -> None:
    """Build the model and the rewards, and run; or say what would be run."""
    prompts, held_out = read_prompts(config.train_prompts), read_prompts(config.validation_prompts)
    specs = group_specs(config.rewards + [spec for spec in config.holdout_rewards if spec not in config.rewards])
    for name, card in [pair for spec in specs for pair in find_cards(spec)]:
        print(f"{name}: {card.paper}; weights: {card.licence}")
    path = resolve_model(config.pretrained_model_name_or_path)
    if dry_run:
        print(as_yaml(config) + plan(config, len(prompts), len(held_out)))
        return
    threads, device = set_threads(), pick_device(config.device)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision, cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes were launched; this recipe runs in one. Use --num_processes 1.")
    model = load_model(path, device, pick_dtype(device, config.train.mixed_precision))
    rewards = load_rewards(specs, device)
    with run_folder(config.output_dir, config, str(device), threads, accelerator.num_processes) as folder:
        run(config, model, rewards, prompts, held_out, folder, accelerator)


def plan(config: FilterFinetuneConfig, prompts: int, held_out: int) -> str:
    """How much work a run is."""
    candidates = prompts * config.samples_per_prompt
    pairs = held_out * config.evaluate.samples_per_prompt
    return (
        f"plan: {candidates:,} candidates of {prompts:,} prompts; {config.train.max_train_steps:,} training steps of "
        f"{config.train.train_batch_size}; {2 * pairs:,} images of {held_out:,} held-out prompts; into {config.output_dir}"
    )


def run(
    config: FilterFinetuneConfig,
    model: TextToImage,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    held_out: Sequence[str],
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """All phases, on built objects; `rewards` are the selecting one, first, and the hold-outs."""
    selector = selecting(rewards)
    trackers = [name for name in config.report_to if name != "none"]
    with Log(folder, trackers, folder.name, config.model_dump(mode="json")) as log:
        sampling = Sampling(**config.sampling.model_dump(exclude={"batch_size"}))
        batch_size, n = config.sampling.batch_size, config.samples_per_prompt
        candidates = generate(model, prompts, n, folder / "samples", config.seed, batch_size, sampling, log, "candidates")
        scores = score_all(candidates, {selector: rewards[selector]}, folder / "scores", config.evaluate.batch_size, model.device, log)
        selection = select(config, candidates, scores[selector].reshape(-1, n), selector, folder / "selected")
        train_lora(model, candidates, selected_rows(candidates, selection, n), lora_training(config), folder, log, accelerator)
        base, base_scores = judge(config, model, rewards, held_out, folder / "evaluation" / "base", log)
        lora.load_lora(model, folder / "lora")
        tuned, tuned_scores = judge(config, model, rewards, held_out, folder / "evaluation" / "tuned", log)
        rows, gap = evaluate(config, rewards, selector, base_scores, tuned_scores, folder / "evaluation" / "result.json")
        truncated = model.count_truncated([*prompts, *held_out])
        report(config, folder, (base, tuned), (base_scores, tuned_scores), rows, gap, selection, scores[selector], truncated, log)


def selecting(rewards: Mapping[str, Reward]) -> str:
    """The name of the reward that selects: the first, which must give one number an image."""
    name = next(iter(rewards))
    if len(rewards[name].dimensions) > 1:
        choices = " or ".join(f"{name}.{dimension}" for dimension in rewards[name].dimensions)
        raise ValueError(f"{name} gives several scores and one must select. Use {choices}, or weights (NAME=WEIGHT).")
    return name


def select(
    config: FilterFinetuneConfig,
    store: SampleStore,
    scores: Float[Tensor, "prompt n"],
    name: str,
    folder: Path,
) -> Selection:
    """Keep the best candidates of each prompt and copy them to an imagefolder."""
    threshold = config.select.threshold
    if config.select.threshold_quantile is not None:
        threshold = quantile_threshold(scores, config.select.threshold_quantile)
    selection = best_of_n(scores, config.select.per_prompt, threshold)
    rows = selected_rows(store, selection, scores.shape[1])
    export_imagefolder(rows, {name: [scores[index].item() for index in selection.kept]}, folder)
    at = "" if threshold is None else f" at the threshold {threshold:.4g}"
    print(
        f"selected {len(rows):,} of {scores.numel():,} candidates; {selection.prompts_below_threshold} of "
        f"{selection.prompts} prompts dropped, having no candidate above{at or ' a threshold (there is none)'}"
    )
    return selection


def lora_training(config: FilterFinetuneConfig) -> LoraTraining:
    """The settings of the fine-tuning."""
    loop = config.train.model_dump(exclude={"train_batch_size", "proportion_empty_prompts", "mixed_precision"})
    return LoraTraining(
        **config.lora.model_dump(),
        train_batch_size=config.train.train_batch_size,
        proportion_empty_prompts=config.train.proportion_empty_prompts,
        loop=TrainSettings(**loop, seed=config.seed),
    )


def selected_rows(store: SampleStore, selection: Selection, n: int) -> list[SampleRow]:
    """The rows of the kept candidates, in the order of the selection."""
    rows = store.rows()
    return [rows[prompt * n + sample] for prompt, sample in selection.kept]


def judge(
    config: FilterFinetuneConfig,
    model: TextToImage,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    folder: Path,
    log: Log,
) -> tuple[SampleStore, Scores]:
    """Images of held-out prompts, by seeds that depend on prompt and number alone, and their scores by every reward."""
    sampling = Sampling(**config.sampling.model_dump(exclude={"batch_size"}))
    n, what = config.evaluate.samples_per_prompt, f"evaluate {folder.name}"
    store = generate(model, prompts, n, folder / "samples", config.seed + 1, config.sampling.batch_size, sampling, log, what)
    return store, score_all(store, rewards, folder / "scores", config.evaluate.batch_size, model.device, log)


def evaluate(
    config: FilterFinetuneConfig,
    rewards: Mapping[str, Reward],
    selector: str,
    base: Scores,
    tuned: Scores,
    path: Path,
) -> tuple[list[Row], RecoveredGap]:
    """Compare every score seed by seed; the first hold-out's first score is the headline, and the judge of the gap."""
    n = config.evaluate.samples_per_prompt
    groups = torch.arange(len(base[selector])) // n
    order = sorted(rewards, key=lambda name: name == selector)
    rows = [
        compare(name, dimension, base[name][:, column], tuned[name][:, column], groups, config.seed)
        for name in order
        for column, dimension in enumerate(rewards[name].dimensions)
    ]
    write_json(path, [asdict(row) for row in rows])
    judged = [scores[order[0]][:, 0].reshape(-1, n) for scores in (base, tuned)]
    return rows, recovered_gap(judged[0], base[selector].reshape(-1, n), judged[1], config.seed)


if __name__ == "__main__":
    launch(FilterFinetuneConfig, main)
