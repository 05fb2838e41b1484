"""What it means to be a recipe: it runs, leaves what it promises, learns nothing twice, and a killed run ends the same.

On tiny models of random weights; whether pictures get better is measured on the sandbox (`make demo`, LOG.md).
"""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import load_dataset
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from align import finetune, lora
from align.families.load import load_model
from align.lora import load_lora
from align.model import Sampling
from align.samples import SampleStore
from recipes import filter_finetune, judge
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.reward_names import selecting, selector_and_holdouts
from recipes.run_folder import run_folder
from rewards.base import Embedder, Images, Reward
from tests.tiny import save_tiny_model

PROMPTS = ["a cat", "two dogs", "a red house"]
HELD_OUT = ["a blue cat", "<script>alert('a dog')</script>", "three trees " * 2500]
"""One of HTML, and one of 5,000 words."""
CPU = torch.device("cpu")


class Brightness(Reward):
    """The mean of all pixels."""

    dimensions = ("brightness",)
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def __call__(self, images: Images, prompts: object) -> Float[Tensor, "batch 1"]:
        return torch.stack([image.mean() for image in images])[:, None]


class Redness(Reward, Embedder):
    """Red above the other channels, and how red; sees no difference but that of the mean colours."""

    dimensions = ("redness", "red")
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def embed(self, images: Images) -> Float[Tensor, "batch 3"]:
        return normalize(torch.stack([image.mean((1, 2)) for image in images]), dim=-1)

    def __call__(self, images: Images, prompts: object) -> Float[Tensor, "batch 2"]:
        return torch.stack([torch.stack([image[0].mean() - image[1:].mean(), image[0].mean()]) for image in images])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def config_of(folder: Path, **changes: object) -> FilterFinetuneConfig:
    settings = {
        "output_dir": folder,
        "train_prompts": folder / "train.txt",
        "validation_prompts": folder / "validation.txt",
        "rewards": ["my:Brightness"],
        "samples_per_prompt": 4,
        "sampling": {"num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 6},
        "train": {"learning_rate": 5e-3, "train_batch_size": 2, "max_train_steps": 6, "checkpointing_steps": 2},
        "evaluate": {"samples_per_prompt": 2, "batch_size": 4},
    }
    return FilterFinetuneConfig.model_validate(settings | changes)


def run(config: FilterFinetuneConfig, model_folder: Path) -> Path:
    rewards = {"my:Brightness": Brightness(), "my:Redness": Redness()}
    model = load_model(model_folder, CPU)
    accelerator = Accelerator(cpu=True)
    with run_folder(config.output_dir, config, "cpu", 1, accelerator) as folder:
        filter_finetune.run(config, model, rewards, PROMPTS, HELD_OUT, folder, accelerator)
    return folder


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(tmp_path_factory.mktemp("finished") / "run"), model_folder)


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    names = {"config.yaml", "environment.json", "metrics.jsonl", "samples", "scores", "selected", "checkpoints", "lora"}
    assert names | {"evaluation", "report.html", "README.md", "validation"} <= {
        path.name for path in finished.iterdir()
    }
    rows = json.loads((finished / "evaluation" / "result.json").read_text())
    assert [(row["reward"], row["dimension"]) for row in rows] == [
        ("my:Redness", "redness"),
        ("my:Redness", "red"),
        ("my:Brightness", "brightness"),
        ("diversity", "my:Redness"),
    ]
    assert [row["n"] for row in rows] == [6, 6, 6, 3]
    assert all(row["ci_low"] <= row["difference"] <= row["ci_high"] for row in rows)
    page = (finished / "report.html").read_text()
    assert "a blue cat" in page and "&lt;script&gt;" in page and "<script" not in page
    assert re.search(r"prompts cut at the tokenizer's limit</dt>\s*<dd>2</dd>", page)  # the tiny model reads 22 letters


def test_the_brightest_of_each_prompt_is_selected(finished: Path) -> None:
    selected: Any = load_dataset("imagefolder", data_dir=str(finished / "selected"), split="train")
    assert sorted(selected["text"]) == sorted(PROMPTS)
    store = SampleStore(finished / "samples")
    rows = store.rows()
    brightness = {row.image_id: image.mean().item() for row, image in zip(rows, store.load(rows), strict=True)}
    for row in selected:
        best = max(value for image_id, value in brightness.items() if image_id.startswith(row["prompt_id"]))
        assert row["my:Brightness"] == pytest.approx(best)


def test_the_lora_changes_the_pictures_and_the_base_pictures_are_those_without_it(
    finished: Path, model_folder: Path
) -> None:
    model = load_model(model_folder, CPU)
    stores = {name: SampleStore(finished / "evaluation" / name / "samples") for name in ("base", "tuned")}
    sampling = Sampling(2, 2.0)
    for name, store in stores.items():
        if name == "tuned":
            load_lora(model, finished / "lora")
        rows = store.rows()
        fresh = model.sample([row.text for row in rows], [row.seed for row in rows], sampling)
        assert (fresh - store.load(rows)).abs().max() <= 1.01 / 255
    seeds = [[(row.text, row.seed) for row in store.rows()] for store in stores.values()]
    assert seeds[0] == seeds[1]
    images = [store.load(store.rows()) for store in stores.values()]
    assert (images[0] - images[1]).abs().max() > 2 / 255


STOPS: dict[str, tuple[object, str, int]] = {
    "generate": (judge, "generate", 2),
    "score": (judge, "score", 3),
    "select": (filter_finetune, "export_imagefolder", 1),
    "train": (finetune, "denoising_mse", 4),
    "save": (lora, "save_lora", 1),
    "validate": (judge, "score", 6),
    "evaluate": (judge, "score", 8),
    "report": (filter_finetune, "report", 1),
}


@pytest.mark.parametrize("phase", STOPS)
def test_a_run_stopped_in_any_phase_ends_with_the_same_bits(
    phase: str, finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run")
    module, name, call = STOPS[phase]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping(getattr(module, name), call))
        with pytest.raises(InterruptedError):
            run(config, model_folder)
    folder = run(config, model_folder)
    file = "lora/pytorch_lora_weights.safetensors"
    assert_same(load_file(folder / file), load_file(finished / file))
    result = "evaluation/result.json"
    assert (folder / result).read_text() == (finished / result).read_text()
    losses = [[row["loss"] for row in records(path) if row["phase"] == "train"] for path in (folder, finished)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def stopping(function: Callable[..., object], call: int) -> Callable[..., object]:
    """The function, but its `call`-th call does its work and is then interrupted."""
    calls = 0

    def wrapper(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        result = function(*arguments, **options)
        if calls == call:
            raise InterruptedError
        return result

    return wrapper


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_run_again_changes_nothing(finished: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "config.yaml").unlink()  # it names the other folder
    run(config_of(folder), model_folder)
    for path in (*finished.rglob("*.png"), *finished.rglob("*.parquet"), *finished.rglob("*.safetensors")):
        assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def rounds(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(tmp_path_factory.mktemp("rounds") / "run", rounds=2, num_validation_prompts=2), model_folder)


def test_a_second_round_goes_on_with_the_lora_from_fresh_candidates_of_the_tuned_model(
    rounds: Path, finished: Path, model_folder: Path
) -> None:
    folders = [rounds / "rounds" / number for number in ("1", "2")]
    file = "lora/pytorch_lora_weights.safetensors"
    first, second, last = (load_file(folder / file) for folder in (*folders, rounds))
    assert_same(first, load_file(finished / file))  # a first round is a run of one
    assert_same(second, last)
    assert first.keys() == second.keys() and not any(torch.equal(first[name], second[name]) for name in first)
    model = load_model(model_folder, CPU)
    base = model.fingerprint
    load_lora(model, folders[0] / "lora")
    made_by = [{row.model for row in SampleStore(folder / "samples").rows()} for folder in folders]
    assert made_by == [{base}, {model.fingerprint}]
    seeds = [{row.seed for row in SampleStore(folder / "samples").rows()} for folder in folders]
    assert not seeds[0] & seeds[1]


def test_the_gain_of_each_round_is_told(rounds: Path, finished: Path) -> None:
    results = [(rounds / "rounds" / number / "evaluation/result.json").read_text() for number in ("1", "2")]
    assert results[0] == (finished / "evaluation/result.json").read_text() != results[1]
    assert results[1] == (rounds / "evaluation/result.json").read_text()
    steps = [row["step"] for row in records(rounds) if row["phase"] == "train"]
    assert steps == list(range(1, 13))
    looked = [row["step"] for row in records(rounds) if row["phase"] == "validation"]
    assert looked == [0, 6, 12]


@pytest.mark.parametrize("call", [3, 4, 5])
def test_a_run_of_rounds_stopped_in_the_second_ends_with_the_same_bits(
    call: int, rounds: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run", rounds=2, num_validation_prompts=0)
    with monkeypatch.context() as patch:
        patch.setattr(judge, "generate", stopping(judge.generate, call))
        with pytest.raises(InterruptedError):
            run(config, model_folder)
    folder = run(config, model_folder)
    file = "lora/pytorch_lora_weights.safetensors"
    assert_same(load_file(folder / file), load_file(rounds / file))
    assert (folder / "evaluation/result.json").read_bytes() == (rounds / "evaluation/result.json").read_bytes()


def test_diversity_is_the_distance_between_the_images_of_a_prompt(finished: Path) -> None:
    row = json.loads((finished / "evaluation" / "result.json").read_text())[-1]
    for name in ("base", "tuned"):
        store = SampleStore(finished / "evaluation" / name / "samples")
        pairs = store.load(store.rows()).mean((2, 3)).unflatten(0, (-1, 2))
        distance = 1 - torch.cosine_similarity(pairs[:, 0], pairs[:, 1]).double()
        assert row[f"{name}_mean"] == pytest.approx(distance.mean().item(), abs=1e-6)


def test_a_full_disk_while_the_lora_is_saved_does_not_spoil_the_run(
    finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = config_of(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(lora, "save_tensors", full)
        with pytest.raises(OSError, match="No space left"):
            run(config, model_folder)
    file = "lora/pytorch_lora_weights.safetensors"
    assert_same(load_file(run(config, model_folder) / file), load_file(finished / file))


def test_pictures_of_other_weights_are_drawn_again(finished: Path, model_folder: Path, tmp_path: Path) -> None:
    """As after a resume on another machine, which comes to other bits; and where such a removal was cut off."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("config.yaml", "lora", "report.html"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for step, change in (("000000", "f" * 16), ("000006", None)):
        record = folder / "validation" / f"step-{step}" / "samples" / "generation.json"
        if change:
            record.write_text(re.sub(r'"model": "\w+"', f'"model": "{change}"', record.read_text()))
        else:
            record.unlink()
    shutil.rmtree(folder / "checkpoints")
    run(config_of(folder), model_folder)
    for path in finished.glob("validation/**/*.png"):
        assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes()


def test_other_settings_in_the_same_folder_are_refused(finished: Path, model_folder: Path) -> None:
    changed = config_of(finished, samples_per_prompt=5)
    with pytest.raises(
        ValueError, match=r"(?s)run with other settings:.*-samples_per_prompt: 4.*\+samples_per_prompt: 5"
    ):
        run(changed, model_folder)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    with (
        run_folder(config.output_dir, config, "cpu", 1, Accelerator(cpu=True)),
        pytest.raises(ValueError, match="Another process works on"),
        run_folder(config.output_dir, config, "cpu", 1, Accelerator(cpu=True)),
    ):
        pass


def test_a_threshold_that_keeps_nothing_says_what_would(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)threshold.*0\.\d+"):
        run(config_of(tmp_path / "run", select={"threshold": 2.0}), model_folder)


def test_several_scores_cannot_select() -> None:
    with pytest.raises(ValueError, match="one must select. Use redness.redness or redness.red"):
        selecting({"redness": Redness()})


def test_rewards_without_weights_cannot_both_select() -> None:
    with pytest.raises(ValueError, match="a and b cannot both select. Give each a weight"):
        selector_and_holdouts(["a", "b"], [])
    assert selector_and_holdouts(["a=1", "b=0.5"], ["c", "d"]) == ["a=1 b=0.5", "c", "d"]
    assert selector_and_holdouts(["a"], ["b", "a"]) == ["a", "b"]


def test_a_min_timestep_beyond_the_model_is_refused_before_anything_is_made(model_folder: Path, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text("a cat\na dog\n")
    prompts = {f"{name}_prompts": tmp_path / f"{name}.txt" for name in ("train", "validation")}
    config = config_of(
        tmp_path / "run",
        **prompts,
        pretrained_model_name_or_path=str(model_folder),
        rewards=["sandbox-hps"],
        train={"min_timestep": 1000},
        device="cpu",
    )
    with pytest.raises(ValueError, match="min_timestep is 1000; it must be from 0 to 999"):
        filter_finetune.main(config)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text("a cat\na dog\n")
    config = config_of(
        tmp_path / "run",
        train_prompts=tmp_path / "train.txt",
        validation_prompts=tmp_path / "validation.txt",
        rewards=["sandbox-hps"],
    )
    before = sorted(tmp_path.rglob("*"))
    filter_finetune.main(config, dry_run=True)
    assert "plan: 8 candidates of 2 prompts" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
