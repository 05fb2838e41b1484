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

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from align.device import pick_device, pick_dtype, set_threads
from align.encoded import Picture, read_imagefolder
from align.families.load import load_model
from align.finetune import check_min_timestep, train_lora
from align.log import Log
from align.lora import check_targets, eject, load_lora
from align.model import Sampling, TextToImage
from align.samples import SampleRow, export_imagefolder
from align.select import Selection, best_of_n, quantile_threshold
from align.state import atomic_path, write_json
from align.train import check_launch
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configuration import launch
from recipes.filter_plan import check_held_out, lora_training, plan
from recipes.filter_report import Round, report
from recipes.judge import Judge, Judged
from recipes.models import resolve_model
from recipes.prompts import read_prompts
from recipes.reward_names import announce, selecting, selector_and_holdouts
from recipes.run_folder import run_folder
from recipes.settings import as_yaml
from recipes.watch import watch
from rewards.base import Reward
from rewards.load import load_reward

FRESH = 10_000
"""Added to the seed from round to round, so that the candidates are new ones."""


def main(config: FilterFinetuneConfig, *, dry_run: bool = False) -> None:
    """Build the model and the rewards, and run; or say what would be run."""
    prompts, held_out = read_prompts(config.train_prompts), read_prompts(config.validation_prompts)
    check_held_out(config.validation_prompts, held_out)
    names = selector_and_holdouts(config.rewards, config.holdout_rewards)
    path = resolve_model(config.pretrained_model_name_or_path)
    if dry_run:
        announce(names)
        print(as_yaml(config) + plan(config, len(prompts), len(held_out)))
        return
    threads, device = set_threads(), pick_device(config.device)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision, cpu=device.type == "cpu")
    if accelerator.is_main_process:
        announce(names)
    check_launch(accelerator)
    ordinary = config.train.regularization.train_data_dir
    pictures = read_imagefolder(ordinary) if ordinary else []
    model = load_model(path, device, pick_dtype(device, config.train.mixed_precision))
    check_min_timestep(model, config.train.min_timestep)
    check_targets(model.denoiser, config.lora.target_modules or model.lora_target_modules)
    rewards = {name: load_reward(name, device) for name in names}
    with run_folder(config.output_dir, config, str(device), threads, accelerator) as folder:
        run(config, model, rewards, prompts, held_out, folder, accelerator, pictures)


def run(
    config: FilterFinetuneConfig,
    model: TextToImage,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    held_out: Sequence[str],
    folder: Path,
    accelerator: Accelerator,
    ordinary: Sequence[Picture] = (),
) -> None:
    """All phases, on built objects; `rewards` are the selecting one, first, and the hold-outs.

    `ordinary` are images of which a share is mixed in.
    """
    selector, trackers = selecting(rewards), sorted(set(config.report_to) - {"none"})
    sampling = Sampling(**config.sampling.model_dump(exclude={"batch_size"}))
    sizes = config.sampling.batch_size, config.evaluate.batch_size
    # the hold-outs come first: the headline is what one of them says
    names = sorted(rewards, key=lambda name: name == selector)
    settings = config.model_dump(mode="json")
    with Log(folder, trackers, folder.name, settings, accelerator.is_main_process) as log:
        judge = Judge(model, rewards, sampling, sizes, log, accelerator)
        n, place = config.evaluate.samples_per_prompt, folder / "evaluation"
        base = judge(held_out, names, n, place / "base", config.seed + 1)
        rounds: list[Round] = []
        for number in range(1, config.rounds + 1):
            place = folder if config.rounds == 1 else folder / "rounds" / str(number)
            before = rounds[-1].folder / "lora" if rounds else None
            rounds.append(one_round(config, judge, number, before, prompts, ordinary, base, place))
        if accelerator.is_main_process:
            publish(folder, place)
            report(config, folder, base, rounds, model.count_truncated([*prompts, *held_out]), log)
        accelerator.wait_for_everyone()


def one_round(
    config: FilterFinetuneConfig,
    judge: Judge,
    number: int,
    before: Path | None,
    prompts: Sequence[str],
    ordinary: Sequence[Picture],
    base: Judged,
    folder: Path,
) -> Round:
    """Candidates of the model as it is, the best of them, a LoRA trained on (from `before` on), and the comparison."""
    names, model, accelerator = list(base.scores), judge.model, judge.accelerator
    selector, held_out = names[-1], [row.text for row in base.rows[:: base.n]]
    seed, steps_before = config.seed + FRESH * (number - 1), config.train.max_train_steps * (number - 1)
    candidates = judge(prompts, [selector], config.samples_per_prompt, folder, seed)
    selection = select(config, candidates, selector, folder / "selected", accelerator)
    if before:
        eject(model.denoiser)
    shown, place, steps = (
        held_out[: config.num_validation_prompts],
        folder / "validation",
        config.train.validation_steps,
    )
    train_lora(
        model,
        selected_rows(candidates, selection),
        ordinary,
        lora_training(config.train, config.lora, config.train.regularization.proportion, seed, steps_before),
        folder,
        judge.log,
        accelerator,
        start_from=before,
        validation=watch(judge, shown, place, config.seed + 1, steps, steps_before),
    )
    load_lora(model, folder / "lora")
    tuned = judge(held_out, names, base.n, folder / "evaluation" / "tuned", config.seed + 1)
    rows = judge.compare(base, tuned, config.seed) if accelerator.is_main_process else []
    if accelerator.is_main_process:
        write_json(folder / "evaluation" / "result.json", [asdict(row) for row in rows])
    return Round(folder, candidates, selection, tuned, rows)


def publish(folder: Path, last: Path) -> None:
    """Put what the last round came to where a run of one round has it."""
    for name in ("lora", "evaluation/result.json") if last != folder else ():
        with atomic_path(folder / name) as temporary:
            copy = shutil.copytree if (last / name).is_dir() else shutil.copyfile
            copy(last / name, temporary)


def select(
    config: FilterFinetuneConfig, candidates: Judged, selector: str, folder: Path, accelerator: Accelerator
) -> Selection:
    """Keep the best candidates of each prompt and copy them to an imagefolder."""
    scores, threshold = candidates.first(selector), config.select.threshold
    if config.select.threshold_quantile is not None:
        threshold = quantile_threshold(scores, config.select.threshold_quantile)
    selection = best_of_n(scores, config.select.per_prompt, threshold)
    columns = {selector: [scores[index].item() for index in selection.kept]}
    if accelerator.is_main_process:
        export_imagefolder(selected_rows(candidates, selection), columns, folder)
    accelerator.print(f"selected {len(selection.kept):,} of {scores.numel():,} candidates")
    if threshold is not None:
        dropped = f"{selection.prompts_below_threshold} of {selection.prompts} prompts"
        accelerator.print(f"{dropped} dropped: none of their candidates reaches the threshold {threshold:.4g}")
    return selection


def selected_rows(candidates: Judged, selection: Selection) -> list[SampleRow]:
    """The rows of the kept candidates, in the order of the selection."""
    rows = candidates.rows
    return [rows[prompt * candidates.n + sample] for prompt, sample in selection.kept]


if __name__ == "__main__":
    launch(FilterFinetuneConfig, main)
