"""`align generate` with several negative prompts: the user's own, and those that a LoRA asks for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.families.load import load_model
from align.lora import inject, save_lora, token_header
from align.model import Sampling
from align.samples import SampleStore
from recipes import cli
from recipes.configs.generate import GenerateConfig, split_weights
from recipes.configuration import parse_command
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
SEVERAL = ["--negative_prompts", "Weird anatomy. =1", "x=y=0.5"]
WEIGHTS = {"Weird anatomy. ": 1.0, "x=y": 0.5}
ASKED = {"Odd one. ": 1.0, "Dull image. ": 0.25}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA without effect that asks for two negative prompts."""
    model = load_model(model_folder, CPU)
    inject(model.denoiser, 1, 1, model.lora_target_modules, 0)
    return save_lora(model, tmp_path_factory.mktemp("lora"), token_header(ASKED)).parent


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """The command line; what it draws goes to `images`."""
    (tmp_path / "prompts.txt").write_text("a cow\ntwo dogs\n")
    command = ["generate", "--model", str(model_folder), "--prompts", str(tmp_path / "prompts.txt"), "--device", "cpu"]
    command += ["--output_dir", str(tmp_path / "images"), "--samples_per_prompt", "1", "--num_inference_steps", "4"]
    return lambda *options: cli.main([*command, *map(str, options)])


def assert_drawn_away_from(negative_prompt: Any, folder: Path, model_folder: Path) -> None:
    """The images are those of the model with this negative prompt, and the record says it."""
    store = SampleStore(folder)
    rows = store.rows()
    model, sampling = load_model(model_folder, CPU), Sampling(4, 7.5, negative_prompt)
    fresh = model.sample([row.text for row in rows], [row.seed for row in rows], sampling)
    assert (fresh - store.load(rows)).abs().max() <= 0.51 / 255
    assert json.loads((folder / "generation.json").read_text())["negative_prompt"] == negative_prompt


def test_several_with_weights_and_only_these_continue_the_folder(
    run: Callable[..., int], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SEVERAL) == 0
    assert_drawn_away_from(WEIGHTS, tmp_path / "images", model_folder)
    assert run(*SEVERAL) == 0
    capsys.readouterr()
    assert run("--negative_prompts", "Weird anatomy. =1", "x=y=0.25") == 1
    told = capsys.readouterr().err
    assert "another experiment" in told and "Traceback" not in told
    assert f"negative_prompt was {WEIGHTS}, is {WEIGHTS | {'x=y': 0.25}}. Go back" in told.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "drawn_away_from", "is_told"),
    [
        ([], ASKED, True),
        (["--no_reward_token"], "", False),
        (["--negative_prompt", "blue"], "blue", False),
        (["--negative_prompt", ""], "", False),
        (SEVERAL, WEIGHTS, False),
        (["--negative_prompts", "blue=3"], "blue", False),
    ],
)
def test_a_lora_asks_for_several_and_the_user_wins(
    run: Callable[..., int],
    model_folder: Path,
    lora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    drawn_away_from: Any,
    is_told: bool,
) -> None:
    assert run("--lora", lora, *options) == 0
    told = (
        f"'Odd one. ' (weight 1), 'Dull image. ' (weight 0.25), the reward tokens of {lora}, are the negative prompts."
    )
    assert (told in capsys.readouterr().out) == is_told
    assert_drawn_away_from(drawn_away_from, tmp_path / "images", model_folder)


def test_without_guidance_they_are_said_to_have_no_effect(
    run: Callable[..., int], lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--lora", lora, "--guidance_scale", "1") == 0
    assert f"the reward tokens of {lora}, have no effect at guidance scale 1." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*SEVERAL, "--negative_prompt", "blue"], "--negative_prompt and --negative_prompts came together"),
        (["--negative_prompts", "blue"], "'blue' must be TEXT=WEIGHT with a finite number above 0"),
        (["--negative_prompts", "blue="], "'blue=' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=much"], "'blue=much' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=1", "red=0"], "'red=0' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=-1"], "'blue=-1' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=nan"], "'blue=nan' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=inf"], "'blue=inf' must be TEXT=WEIGHT"),
        (["--negative_prompts", "0.5"], "'0.5' must be TEXT=WEIGHT"),
        (["--negative_prompts", "blue=1", "blue=2"], "'blue' came twice"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(*options, "--dry-run") != 0
    told = " ".join(capsys.readouterr().err.split())
    assert message in told and "Traceback" not in told
    assert not (tmp_path / "images").exists()


def test_words_keep_their_spaces_on_their_way_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("negative_prompts: ['Weird anatomy. =1', ' =0.5', '=2']\n")
    argv = ["--config", str(tmp_path / "my.yaml"), "--model", "x", "--prompts", "x", "--output_dir", "x"]
    command = parse_command(GenerateConfig, argv, "align generate")
    assert command is not None
    assert split_weights(command.settings.negative_prompts) == {"Weird anatomy. ": 1.0, " ": 0.5, "": 2.0}
