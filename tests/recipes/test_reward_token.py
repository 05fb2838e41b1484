"""The reward-token recipe on tiny models of random weights: what it chooses, trains, writes, and how it continues."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from align import finetune, lora
from align.families.load import load_model
from align.log import read_metrics
from align.lora import read_reward_token
from align.model import Sampling
from align.samples import SampleStore
from recipes import cli, judge, reward_token
from recipes.configs.reward_token import RewardTokenConfig
from recipes.images import FOREIGN
from recipes.run_folder import run_folder
from recipes.token_arms import ways
from recipes.token_plan import check_identifier
from recipes.token_source import Source, read_source
from rewards.base import Images, Reward
from tests.test_recipes import stopping
from tests.tiny import save_tiny_model

PROMPTS = ["a cat", "two dogs", "a house"]
HELD_OUT = ["a cow", "<script>hi"]
IDENTIFIER = "odd "
CPU = torch.device("cpu")
LORA = "lora/pytorch_lora_weights.safetensors"


class Brightness(Reward):
    """The mean of all pixels."""

    dimensions = ("brightness",)
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def __call__(self, images: Images, prompts: object) -> Float[Tensor, "batch 1"]:
        return torch.stack([image.mean() for image in images])[:, None]


class Length(Reward):
    """The length of the prompt that is scored against, and the mean of red."""

    dimensions = ("length", "red")
    differentiable = True

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return image

    def __call__(self, images: Images, prompts: Any) -> Float[Tensor, "batch 2"]:
        pairs = zip(images, prompts, strict=True)
        return torch.stack(
            [torch.stack([torch.tensor(float(len(prompt))), image[0].mean()]) for image, prompt in pairs]
        )


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Stable Diffusion 1.x and 2.x."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def epsilon_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def config_of(folder: Path, **changes: object) -> RewardTokenConfig:
    settings = {
        "output_dir": folder,
        "identifier": IDENTIFIER,
        "train_prompts": folder / "train.txt",
        "validation_prompts": folder / "validation.txt",
        "num_validation_prompts": 1,
        "rewards": ["my:Brightness"],
        "source": {"samples_per_prompt": 4, "sampling": {"num_inference_steps": 2, "guidance_scale": 1.0}},
        "select": {"scale": 500, "negative_ratio": 1.0},
        "regularization": {"samples_per_prompt": 2, "ratio": 1.0},
        "sampling": {"num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 6},
        "train": {"learning_rate": 5e-3, "train_batch_size": 2, "max_train_steps": 8, "checkpointing_steps": 3},
        "evaluate": {"samples_per_prompt": 2, "guidance_scales": [1, 5], "guidance_samples_per_prompt": 1},
    }
    return RewardTokenConfig.model_validate(settings | changes)


def run(config: RewardTokenConfig, model_folder: Path, given: Source | None = None) -> Path:
    rewards = {"my:Brightness": Brightness(), "my:Length": Length()}
    model, accelerator = load_model(model_folder, CPU), Accelerator(cpu=True)
    with run_folder(config.output_dir, config, "cpu", 1, accelerator) as folder:
        reward_token.run(config, model, rewards, PROMPTS, HELD_OUT, folder, accelerator, given)
    return folder


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(tmp_path_factory.mktemp("finished") / "run"), model_folder)


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    rows = json.loads((finished / "evaluation/result.json").read_text())
    pairs = list(dict.fromkeys((row["arm"], row["against"]) for row in rows))
    assert pairs == ways(config_of(finished)).pairs and len(pairs) == 10
    assert [row["dimension"] for row in rows[:3]] == ["length", "red", "brightness"]
    assert all(row["n"] == 4 and row["ci_low"] <= row["difference"] <= row["ci_high"] for row in rows)
    points = json.loads((finished / "evaluation/guidance.json").read_text())
    assert [(point["arm"], point["guidance_scale"]) for point in points] == [
        ("base", 1.0),
        ("base", 5.0),
        ("tuned", 1.0),
        ("tuned", 5.0),
    ]
    page = (finished / "report.html").read_text()
    assert "&lt;script&gt;hi" in page and "<script" not in page and "guidance scale" in page
    steps = [
        json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert steps == list(range(1, 17))  # the LoRA's eight, then the control's
    looks = [row["step"] for row in read_metrics(finished) if row["phase"] == "validation"]
    assert looks == [0, 8]  # the last one is still there after the control
    card = (finished / "README.md").read_text()
    assert json.dumps(IDENTIFIER) in card and "| tuned, away from the token | base model |" in card


def test_the_brightest_and_the_darkest_are_trained_on_and_the_darkest_say_so(finished: Path) -> None:
    chosen: Any = load_dataset("imagefolder", data_dir=str(finished / "selected"), split="train")
    store = SampleStore(finished / "samples")
    brightness = store.load(store.rows()).mean((1, 2, 3)).unflatten(0, (3, 4))
    for row in chosen:
        of_prompt = brightness[PROMPTS.index(row["prompt"])]
        extreme = of_prompt.min() if row["words"] else of_prompt.max()
        assert row["score"] == pytest.approx(extreme.item())
        assert row["text"] == row["words"] + row["prompt"]
        assert row["share"] > 2 / 4
    sides = [(row["prompt"], row["words"]) for row in chosen]
    assert len(set(sides)) == len(sides) and {side for _, side in sides} == {"", IDENTIFIER}


def test_all_ways_of_drawing_share_seeds_and_are_scored_against_the_plain_prompt(
    finished: Path, model_folder: Path
) -> None:
    arms = ways(config_of(finished)).arms
    stores = {arm.name: SampleStore(finished / "evaluation" / arm.name / "samples") for arm in arms}
    seeds = {tuple((row.text, row.seed) for row in store.rows()) for store in stores.values()}
    assert len(seeds) == 1
    model = load_model(model_folder, CPU)
    expected = {"base": ("", ""), "base-string": ("", IDENTIFIER), "base-asked": (IDENTIFIER, "")}
    for arm in (arm for arm in arms if arm.lora is None):
        rows, (prefix, negative) = stores[arm.name].rows(), expected[arm.name]
        asked = [prefix + row.text for row in rows]
        sampling = Sampling(2, 3.0, negative)
        fresh = model.sample(asked, [row.seed for row in rows], sampling)
        assert (fresh - stores[arm.name].load(rows)).abs().max() <= 1.01 / 255


def test_the_lora_knows_its_words_and_the_control_has_none(finished: Path) -> None:
    assert read_reward_token(finished / "lora") == IDENTIFIER
    assert read_reward_token(finished / "control/lora") is None
    with safe_open(finished / LORA, framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "odd"


def test_a_bare_pipeline_with_the_words_draws_what_generate_draws(
    finished: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cow\n")
    command = ["generate", "--model", str(model_folder), "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]
    command += ["--lora", str(finished / "lora"), "--samples_per_prompt", "1", "--num_inference_steps", "4"]
    drawn: dict[str, Tensor] = {}
    choices = {"token": [], "none": ["--no-reward-token"], "own": ["--negative_prompt", "blue"]}
    for name, options in choices.items():
        assert cli.main([*command, "--output_dir", str(tmp_path / name), *options]) == 0
        told = (
            f"'{IDENTIFIER}', the reward token of {finished / 'lora'}, is the negative prompt."
            in capsys.readouterr().out
        )
        assert told == (name == "token")
        store = SampleStore(tmp_path / name)
        drawn[name] = store.load(store.rows())[0]
    seed = SampleStore(tmp_path / "token").rows()[0].seed
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(finished / "lora")
    for name, words in {"token": IDENTIFIER, "none": None, "own": "blue"}.items():
        generator = torch.Generator().manual_seed(seed)
        image = pipeline("a cow", negative_prompt=words, num_inference_steps=4, generator=generator, output_type="np")
        theirs = torch.from_numpy(image.images[0]).permute(2, 0, 1)
        assert (theirs - drawn[name]).abs().max() <= 1 / 255
    assert (drawn["token"] - drawn["none"]).abs().max() > 2 / 255


def test_generate_says_where_the_words_have_no_effect(
    whole: Path, epsilon_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cow\n")
    command = [
        "generate",
        "--model",
        str(epsilon_folder),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--device",
        "cpu",
    ]
    command += ["--output_dir", str(tmp_path / "out"), "--lora", str(whole / "lora"), "--num_inference_steps", "2"]
    assert cli.main([*command, "--guidance_scale", "1"]) == 0
    assert f"the reward token of {whole / 'lora'}, has no effect at guidance scale 1." in capsys.readouterr().out


STOPS: dict[str, tuple[object, str, int]] = {
    "draw": (judge, "generate", 1),
    "score": (judge, "score", 1),
    "select": (reward_token, "export", 1),
    "ordinary": (judge, "generate", 2),
    "train": (finetune, "denoising_mse", 5),
    "validate": (judge, "score", 3),
    "save": (lora, "save_lora", 1),
    "control": (finetune, "denoising_mse", 12),
    "evaluate": (judge, "generate", 8),
    "guidance": (judge, "generate", 14),
    "report": (reward_token, "report", 1),
}


@pytest.fixture(scope="module")
def whole(epsilon_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(tmp_path_factory.mktemp("whole") / "run"), epsilon_folder)


@pytest.mark.parametrize("phase", STOPS)
def test_a_run_stopped_in_any_phase_ends_with_the_same_bits(
    phase: str, whole: Path, epsilon_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run")
    module, name, call = STOPS[phase]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping(getattr(module, name), call))
        with pytest.raises(InterruptedError):
            run(config, epsilon_folder)
    folder = run(config, epsilon_folder)
    for file in (LORA, f"control/{LORA}"):
        first, second = load_file(folder / file), load_file(whole / file)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    for file in ("evaluation/result.json", "evaluation/guidance.json", "selected/metadata.jsonl"):
        assert (folder / file).read_text() == (whole / file).read_text()


def test_the_tuned_model_is_another_than_the_control(whole: Path) -> None:
    first, second = load_file(whole / LORA), load_file(whole / "control" / LORA)
    assert first.keys() == second.keys() and not any(torch.equal(first[key], second[key]) for key in first)


def folder_source(whole: Path) -> Path:
    """The images that a run drew, as a folder of a user's own with a column of scores."""
    return whole / "samples" / "00000"


def test_a_folder_of_images_selects_as_the_same_images_drawn(whole: Path, epsilon_folder: Path, tmp_path: Path) -> None:
    settings = {"train_data_dir": folder_source(whole), "sampling": {"num_inference_steps": 2, "guidance_scale": 1.0}}
    config = config_of(tmp_path / "run", train_prompts=None, source=settings, num_validation_prompts=0)
    folder = run(config, epsilon_folder, read_source(config.source))
    ours, theirs = (
        [json.loads(line) for line in (place / "selected/metadata.jsonl").read_text().splitlines()]
        for place in (folder, whole)
    )
    assert sorted(row["text"] for row in ours) == sorted(row["text"] for row in theirs)
    assert sorted(row["score"] for row in ours) == pytest.approx(sorted(row["score"] for row in theirs))


def test_of_a_run_the_images_that_it_judged_by_are_not_selected_from(whole: Path, tmp_path: Path) -> None:
    found = read_source(config_of(tmp_path, train_prompts=None, source={"train_data_dir": whole}).source)
    assert found is not None and [item.text for item in found.items] == [text for text in PROMPTS for _ in range(4)]
    inside = read_source(config_of(tmp_path, train_prompts=None, source={"train_data_dir": whole / "samples"}).source)
    assert inside is not None and [item.key for item in inside.items] == [item.key for item in found.items]
    assert len({item.key for item in found.items}) == 12 and {item.key[1] for item in found.items} == {FOREIGN}
    for name in ("evaluation", "config.yaml"):
        (tmp_path / "rounds" / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (whole / name).is_dir() else shutil.copy)(whole / name, tmp_path / "rounds" / name)
    with pytest.raises(ValueError, match="those in its other folders are what it judged by"):
        read_source(config_of(tmp_path, train_prompts=None, source={"train_data_dir": tmp_path / "rounds"}).source)


def test_an_image_that_cannot_be_read_is_named_where_scores_came_along(tmp_path: Path, epsilon_folder: Path) -> None:
    table = pa.table(
        {"image": [{"bytes": None, "path": None}] * 4, "prompt": ["a cat"] * 4, "hps": [0.1, 0.2, 0.3, 0.9]}
    )
    pq.write_table(table, tmp_path / "images.parquet")
    settings = {"train_data_dir": tmp_path / "images.parquet", "score_column": "hps"}
    config = config_of(tmp_path / "run", train_prompts=None, source=settings, select={"scale": 30})
    with pytest.raises(ValueError, match=r"images.parquet#3 is missing or no image"):
        run(config, epsilon_folder, read_source(config.source))
    sharp = config_of(tmp_path / "sharp", train_prompts=None, source=settings, select={"min_sharpness": 1.0})
    with pytest.raises(ValueError, match=r"images.parquet#0: "):
        run(sharp, epsilon_folder, read_source(sharp.source))


def test_a_column_of_scores_is_read_and_a_missing_one_is_named(tmp_path: Path, whole: Path) -> None:
    chosen = whole / "selected"
    source = read_source(
        config_of(tmp_path, train_prompts=None, source={"train_data_dir": chosen, "score_column": "score"}).source
    )
    assert source is not None and source.scores is not None
    lines = [json.loads(line) for line in (chosen / "metadata.jsonl").read_text().splitlines()]
    assert source.scores.tolist() == [line["score"] for line in lines]
    wrong = config_of(tmp_path, train_prompts=None, source={"train_data_dir": chosen, "score_column": "hps"}).source
    with pytest.raises(ValueError, match="has no column 'hps'; it has file_name, prompt, text, words, score"):
        read_source(wrong)


def test_a_parquet_table_is_read_with_its_scores(tmp_path: Path, whole: Path, epsilon_folder: Path) -> None:
    """As of DiffusionDB: a `prompt` beside each image."""
    lines = [json.loads(line) for line in (folder_source(whole) / "metadata.jsonl").read_text().splitlines()]
    cells = [{"bytes": (folder_source(whole) / line["file_name"]).read_bytes(), "path": None} for line in lines]
    scores = [float(index % 4) for index in range(len(lines))]
    table = pa.table({"image": cells, "prompt": [line["text"] for line in lines], "hps": scores})
    pq.write_table(table, tmp_path / "images.parquet")
    settings = {"train_data_dir": tmp_path / "images.parquet", "score_column": "hps"}
    config = config_of(tmp_path / "run", train_prompts=None, source=settings, num_validation_prompts=0)
    folder = run(config, epsilon_folder, read_source(config.source))
    chosen = [json.loads(line) for line in (folder / "selected/metadata.jsonl").read_text().splitlines()]
    assert [(row["score"], row["words"]) for row in chosen] == [(3.0, "")] * 3 + [(0.0, IDENTIFIER)] * 3
    assert (folder / "selected/000003.png").read_bytes() == cells[0]["bytes"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identifier": "  "}, "it must say something"),
        ({"identifier": "odd"}, "end in a space"),
        ({"sampling": {"guidance_scale": 1.0}}, "no negative prompt is read, so that the words would have no effect"),
        ({"evaluate": {"guidance_scales": [0.5]}}, "holds 0.5; 1 is no guidance"),
        ({"train_prompts": None}, "give one of them, prompts to draw from or a folder"),
        ({"source": {"score_column": "hps"}}, "images that are yet to be drawn have no scores"),
        ({"report_to": ["none", "wandb"]}, "drop none"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_words_that_cannot_be_a_token_are_refused(epsilon_folder: Path) -> None:
    model = load_model(epsilon_folder, CPU)
    with pytest.raises(ValueError, match="fills all the tokens"):
        check_identifier(model, "a very long string of words ", PROMPTS)
    with pytest.raises(ValueError, match="in 2 of 3 prompts already, such as 'An odd cat'"):
        check_identifier(model, IDENTIFIER, ["An odd cat", "a cow", "odd"])
    assert check_identifier(model, IDENTIFIER, ["a cow", "x" * 20, "x" * 30]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"select": {"min_group_size": 5}},
            "The largest of 3 prompts has 4 images, and a group needs min_group_size = 5",
        ),
        ({"select": {"scale": 1e-6}}, r"No image is preferred: of 3 prompts.* Raise the scale"),
        ({"select": {"min_sharpness": 1e6}}, "All 12 images are below select.min_sharpness"),
    ],
)
def test_a_source_that_gives_nothing_says_what_would(
    changes: dict[str, object], message: str, epsilon_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(config_of(tmp_path / "run", **changes), epsilon_folder)


def test_a_dry_run_tells_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text("a cat\na dog\n")
    before = sorted(tmp_path.rglob("*"))
    config = config_of(
        tmp_path / "run",
        train_prompts=tmp_path / "train.txt",
        validation_prompts=tmp_path / "train.txt",
        rewards=["sandbox-hps"],
    )
    reward_token.main(config, dry_run=True)
    said = capsys.readouterr().out
    assert "plan: 8 images of 2 prompts to select from, 4 regularisation images" in said
    assert "7 x 4 images of 2 held-out prompts, and 8 at other guidance scales" in said
    assert sorted(tmp_path.rglob("*")) == before
