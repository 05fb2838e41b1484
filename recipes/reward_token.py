"""Reward-token adaptation, after section 5 of HPS (arXiv 2303.14420).

    accelerate launch recipes/reward_token.py --config recipes/configs/reward_token/sandbox.yaml

several images of each prompt -> score -> of each prompt the one that stands out, at the top and at the bottom -> words
(the identifier) before the captions of those at the bottom -> fine-tune a LoRA on both, among ordinary images -> the
words as negative prompt -> compare on held-out prompts, seed by seed -> report. Every phase continues where it was
stopped.

Departures from the paper:
1. Any reward, or weighted sum of rewards, selects, with a scale of its own for the softmax.
2. Images are drawn by the model that is tuned, or come from a folder; the paper takes those of DiffusionDB.
3. Blur is the variance of the Laplacian over that of the image; the authors' code looks at one axis, and at signs.
4. `proportion_identifier_alone` can leave out the prompts of some of the disliked images; the paper has none.
5. Beside one identifier: several for several dimensions, one for each level of the reward, or a learned embedding.
6. Ordinary images can be drawn by the base model; the paper takes photographs and paintings of LAION.
7. `train.min_timestep` can leave out the low noise levels; the paper has none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from align.device import pick_device, pick_dtype, set_threads
from align.encoded import Picture, read_imagefolder
from align.families.load import load_model
from align.finetune import check_min_timestep, train_lora
from align.log import Log
from align.lora import check_targets
from align.model import Sampling, TextToImage
from align.state import write_json
from align.train import check_launch
from recipes.configs.reward_token import RewardTokenConfig
from recipes.configuration import launch
from recipes.filter_plan import check_held_out
from recipes.judge import Judge
from recipes.models import resolve_model
from recipes.prompts import read_prompts
from recipes.reward_names import announce, check_single, selecting, selector_and_holdouts
from recipes.run_folder import run_folder
from recipes.sandbox_mix import resolve_ordinary
from recipes.settings import as_yaml
from recipes.token_arms import CONTROL, TUNED, Ways, ways
from recipes.token_choice import Choice, Scores, choose
from recipes.token_dimensions import effects_of
from recipes.token_embedding import taught
from recipes.token_export import export
from recipes.token_judge import as_arm, as_rows, compare_arms, judge_arms, judge_guidance
from recipes.token_plan import check_identifiers, control_training, plan, training
from recipes.token_report import Findings, report
from recipes.token_source import Source, ordinary_pictures, read_source, scored_source
from recipes.token_words import header
from recipes.watch import watch
from rewards.base import Reward
from rewards.load import load_each


def main(config: RewardTokenConfig, *, dry_run: bool = False) -> None:
    """Build the model and the rewards, and run; or say what would be run."""
    held_out, given = read_prompts(config.validation_prompts), read_source(config.source)
    check_held_out(config.validation_prompts, held_out)
    prompts = list(dict.fromkeys(item.text for item in given.items)) if given else read_train_prompts(config)
    judges = selector_and_holdouts(config.rewards, config.holdout_rewards)
    names = list(dict.fromkeys([*judges, *config.dimensions.values()]))
    path = resolve_model(config.pretrained_model_name_or_path)
    if dry_run:
        announce(names)
        images = len(given.items) if given else len(prompts) * config.source.samples_per_prompt
        print(as_yaml(config) + plan(config, images, len(prompts), len(held_out)))
        return
    ordinary = config.regularization.train_data_dir
    pictures = read_imagefolder(resolve_ordinary(ordinary)) if ordinary else []
    threads, device = set_threads(), pick_device(config.device)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision, cpu=device.type == "cpu")
    if accelerator.is_main_process:
        announce(names)
    check_launch(accelerator)
    model = load_model(path, device, pick_dtype(device, config.train.mixed_precision))
    check_min_timestep(model, config.train.min_timestep)
    check_targets(model.denoiser, config.lora.target_modules or model.lora_target_modules)
    check_identifiers(config, model, [*prompts, *held_out])
    rewards = load_each(names, device)
    with run_folder(config.output_dir, config, str(device), threads, accelerator) as folder:
        run(config, model, rewards, prompts, held_out, folder, accelerator, given, pictures)


def read_train_prompts(config: RewardTokenConfig) -> list[str]:
    """The prompts to draw from."""
    assert config.train_prompts is not None, "the configuration has either prompts or a folder"
    return read_prompts(config.train_prompts)


def run(
    config: RewardTokenConfig,
    model: TextToImage,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    held_out: Sequence[str],
    folder: Path,
    accelerator: Accelerator,
    given: Source | None = None,
    pictures: Sequence[Picture] = (),
) -> None:
    """All phases, on built objects; `rewards` are the selecting one, first, and the hold-outs.

    `given` are images to select from, `pictures` ordinary ones; what is not there is drawn by the model.
    """
    selector, trackers = selecting(rewards), sorted(set(config.report_to) - {"none"})
    check_single(rewards, config.dimensions.values())
    # the hold-outs come first: the headline is what one of them says
    names = sorted(rewards, key=lambda name: (name == selector, name in config.dimensions.values()))
    sampling = Sampling(**config.sampling.model_dump(exclude={"batch_size"}))
    sizes = config.sampling.batch_size, config.evaluate.batch_size
    with Log(folder, trackers, folder.name, config.model_dump(mode="json"), accelerator.is_main_process) as log:
        judge = Judge(model, rewards, sampling, sizes, log, accelerator)
        choice, scores = select(config, judge, selector, prompts, given, folder)
        chosen = read_imagefolder(folder / "selected")
        ordinary = pictures or ordinary_pictures(config, judge, prompts, folder)
        drawn = ways(config)
        with taught(config, judge, chosen, folder):
            tune(config, drawn, judge, chosen, ordinary, held_out, folder)
            judged = judge_arms(config, drawn, judge, held_out, names, folder)
            points = judge_guidance(config, drawn, judge, held_out, names[0], folder)
        if accelerator.is_main_process:
            comparisons = compare_arms(judge, drawn, judged, config.seed)
            write_json(folder / "evaluation" / "result.json", as_rows(comparisons))
            effects, missing = effects_of(config, judge, judged, folder)
            notes = notes_on(config, model, [*prompts, *held_out], len(ordinary)) + missing
            found = Findings(drawn, judged, comparisons, effects, points, choice, scores, notes)
            report(config, folder, found, log)
        accelerator.wait_for_everyone()


def select(
    config: RewardTokenConfig,
    judge: Judge,
    selector: str,
    prompts: Sequence[str],
    given: Source | None,
    folder: Path,
) -> tuple[Choice, Scores]:
    """Score the images and copy those that stand out, with their captions, to an imagefolder."""
    asked = dict.fromkeys([selector, *config.dimensions.values()])
    items, scores = scored_source(config, judge, [*asked], prompts, given, folder)
    choice = choose(config, items, scores, config.seed)
    judge.accelerator.print(f"chosen: {choice}")
    if judge.accelerator.is_main_process:
        export(config, choice, items, scores, folder / "selected")
    judge.accelerator.wait_for_everyone()
    return choice, scores


def tune(
    config: RewardTokenConfig,
    drawn: Ways,
    judge: Judge,
    chosen: Sequence[Picture],
    ordinary: Sequence[Picture],
    held_out: Sequence[str],
    folder: Path,
) -> None:
    """The LoRA, into `folder/lora`, and the control, if it is asked for, into `folder/control/lora`."""
    looking = as_arm(judge, drawn.of(TUNED))
    shown, steps = held_out[: config.num_validation_prompts], config.train.validation_steps
    before = config.embedding.max_train_steps
    look = watch(looking, shown, folder / "validation", config.seed + 1, steps, before)
    model, log, accelerator, said = judge.model, judge.log, judge.accelerator, header(config)
    train_lora(model, chosen, ordinary, training(config), folder, log, accelerator, validation=look, header=said)
    if any(arm.lora == CONTROL for arm in drawn.arms):
        train_lora(model, ordinary, [], control_training(config), folder / "control", log, accelerator)


def notes_on(config: RewardTokenConfig, model: TextToImage, prompts: Sequence[str], ordinary: int) -> list[str]:
    """What a reader of the report must know."""
    lost, scale = check_identifiers(config, model, prompts), config.sampling.guidance_scale
    return [
        f"{ordinary:,} regularisation images, {config.regularization.ratio:.3g} for each selected one.",
        "The control, where there is one, is trained in the same way on the regularisation images alone.",
        f"All ways of drawing have a guidance scale of {scale:g}.",
        f"{model.count_truncated(prompts):,} of {len(prompts):,} prompts are longer than the model reads; with the "
        f"words before them {lost:,} more are.",
    ]


if __name__ == "__main__":
    launch(RewardTokenConfig, main)
