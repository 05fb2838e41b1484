"""Best-of-N filtering and LoRA fine-tuning, after section 5 of RichHF-18K (arXiv 2312.10240).

    accelerate launch recipes/filter_finetune.py --config recipes/configs/filter_finetune/sandbox.yaml

generate N candidates a prompt -> score -> keep the best above a threshold -> fine-tune a LoRA on them -> compare with
the base model on held-out prompts, seed by seed -> report. Every phase continues where it was stopped.

Departures from the paper:
1. Any reward, or weighted sum of rewards, selects; the paper filters by its own plausibility score.
2. A LoRA in the denoiser is trained; the paper fine-tunes the whole of Muse, which is not a diffusion model.
3. The comparison is measured by rewards, with hold-outs that did not select; the paper asks people.
4. `train.min_timestep` can leave out the low noise levels; the paper has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from align.device import pick_device, pick_dtype, set_threads
from align.families.load import load_model
from align.finetune import LoraTraining, check_min_timestep, train_lora
from align.log import Log
from align.lora import load_lora
from align.model import Sampling, TextToImage
from align.samples import SampleRow, export_imagefolder
from align.select import Selection, best_of_n, quantile_threshold
from align.state import write_json
from align.train import TrainSettings
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configuration import launch
from recipes.filter_report import report
from recipes.judge import Judged, compare_all, judge
from recipes.models import resolve_model
from recipes.prompts import read_prompts
from recipes.reward_names import announce, selecting, selector_and_holdouts
from recipes.run_folder import run_folder
from recipes.settings import as_yaml
from rewards.base import Reward
from rewards.load import load_reward


def main(config: FilterFinetuneConfig, *, dry_run: bool = False) -> None:
    """Build the model and the rewards, and run; or say what would be run."""
    prompts, held_out = read_prompts(config.train_prompts), read_prompts(config.validation_prompts)
    names = selector_and_holdouts(config.rewards, config.holdout_rewards)
    announce(names)
    path = resolve_model(config.pretrained_model_name_or_path)
    if dry_run:
        print(as_yaml(config) + plan(config, len(prompts), len(held_out)))
        return
    threads, device = set_threads(), pick_device(config.device)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision, cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{accelerator.num_processes} processes were launched; this recipe runs in one. Use --num_processes 1."
        )
    model = load_model(path, device, pick_dtype(device, config.train.mixed_precision))
    check_min_timestep(model, config.train.min_timestep)
    rewards = {name: load_reward(name, device) for name in names}
    with run_folder(config.output_dir, config, str(device), threads, accelerator.num_processes) as folder:
        run(config, model, rewards, prompts, held_out, folder, accelerator)


def plan(config: FilterFinetuneConfig, prompts: int, held_out: int) -> str:
    """How much work a run is."""
    candidates = prompts * config.samples_per_prompt
    pairs = held_out * config.evaluate.samples_per_prompt
    return (
        f"plan: {candidates:,} candidates of {prompts:,} prompts; {config.train.max_train_steps:,} training steps of "
        f"{config.train.train_batch_size}; {2 * pairs:,} images of {held_out:,} held-out prompts; into "
        f"{config.output_dir}"
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
    selector, n, trackers = selecting(rewards), config.samples_per_prompt, set(config.report_to) - {"none"}
    sampling = Sampling(**config.sampling.model_dump(exclude={"batch_size"}))
    sizes = config.sampling.batch_size, config.evaluate.batch_size
    with Log(folder, sorted(trackers), folder.name, config.model_dump(mode="json")) as log:

        def judged(texts: Sequence[str], names: Sequence[str], n: int, place: Path, seed: int) -> Judged:
            judges = {name: rewards[name] for name in names}
            return judge(model, judges, texts, n, place, seed, sizes, sampling, log)

        candidates = judged(prompts, [selector], n, folder, config.seed)
        selection = select(config, candidates, selector, folder / "selected")
        rows = selected_rows(candidates, selection)
        train_lora(model, candidates.store, rows, lora_training(config), folder, log, accelerator)
        # the hold-outs come first: the headline is what one of them says
        names = sorted(rewards, key=lambda name: name == selector)
        samples, place = config.evaluate.samples_per_prompt, folder / "evaluation"
        base = judged(held_out, names, samples, place / "base", config.seed + 1)
        load_lora(model, folder / "lora")
        tuned = judged(held_out, names, samples, place / "tuned", config.seed + 1)
        result = compare_all(base, tuned, {name: rewards[name].dimensions for name in names}, config.seed)
        write_json(place / "result.json", [asdict(row) for row in result])
        truncated = model.count_truncated([*prompts, *held_out])
        report(config, folder, candidates, selection, base, tuned, result, truncated, log)


def select(config: FilterFinetuneConfig, candidates: Judged, selector: str, folder: Path) -> Selection:
    """Keep the best candidates of each prompt and copy them to an imagefolder."""
    scores, threshold = candidates.first(selector), config.select.threshold
    if config.select.threshold_quantile is not None:
        threshold = quantile_threshold(scores, config.select.threshold_quantile)
    selection = best_of_n(scores, config.select.per_prompt, threshold)
    columns = {selector: [scores[index].item() for index in selection.kept]}
    export_imagefolder(selected_rows(candidates, selection), columns, folder)
    print(f"selected {len(selection.kept):,} of {scores.numel():,} candidates")
    if threshold is not None:
        dropped = f"{selection.prompts_below_threshold} of {selection.prompts} prompts"
        print(f"{dropped} dropped: none of their candidates reaches the threshold {threshold:.4g}")
    return selection


def selected_rows(candidates: Judged, selection: Selection) -> list[SampleRow]:
    """The rows of the kept candidates, in the order of the selection."""
    rows = candidates.store.rows()
    return [rows[prompt * candidates.n + sample] for prompt, sample in selection.kept]


def lora_training(config: FilterFinetuneConfig) -> LoraTraining:
    """The settings of the fine-tuning."""
    own = {"train_batch_size", "proportion_empty_prompts", "min_timestep"}
    loop = TrainSettings(**config.train.model_dump(exclude=own | {"mixed_precision"}), seed=config.seed)
    return LoraTraining(**config.lora.model_dump(), **config.train.model_dump(include=own), loop=loop)


if __name__ == "__main__":
    launch(FilterFinetuneConfig, main)
