"""The model card of a run: the Hub reads it, its code runs, it gives nothing away and overwrites nothing."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import validate_repo_id

from align import lora
from align.evaluate import RecoveredGap, Row
from align.families.load import load_model
from align.model import Sampling
from recipes.card_file import MARKER
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configs.generate import GenerateConfig
from recipes.configuration import parse_command
from recipes.model_card import write_card
from recipes.settings import leaf_fields
from sandbox.weights import WEIGHTS
from tests.tiny import save_tiny_model

ROWS = [
    Row("sandbox.gold:Gold", "overall", 512, 0.675, 0.729, 0.054, 0.036, 0.073, 0.61),
    Row("sandbox-hps", "overall", 512, 0.3, 0.2, -0.1, -0.15, -0.05, 0.4),
]
GAP = RecoveredGap(0.2, 0.066, 0.33, 0.23, 0.42)
LICENCES = {"sandbox-hps": "Apache-2.0"}


SETTINGS: dict[str, Any] = {
    "output_dir": "/home/somebody/runs/mine",
    "train_prompts": "/home/somebody/prompts.txt",
    "validation_prompts": "sandbox:validation",
    "rewards": ["sandbox-hps"],
    "holdout_rewards": ["sandbox.gold:Gold"],
}


def config_of(**changes: object) -> FilterFinetuneConfig:
    return FilterFinetuneConfig.model_validate(SETTINGS | {"evaluate": {"samples_per_prompt": 16}} | changes)


def card_of(folder: Path, base_model: str = "owner/name", **changes: object) -> str:
    """The text of a card."""
    return write_card(folder, config_of(**changes), ROWS, GAP, base_model, LICENCES).read_text()


def blocks(text: str) -> dict[str, str]:
    """The blocks of code in a card, by their language."""
    return {language: code for _, language, code in re.findall(r"^(`{3,})(\w+)\n(.*?)\n\1$", text, re.M | re.S)}


def table(text: str) -> list[list[str]]:
    """The rows of the table of results; only a pipe that is not escaped ends a cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    card_of(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": "owner/name",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "diffusers-training", "lora", "align"],
    }
    validate_repo_id(card.data["base_model"])
    assert card.text.lstrip().startswith(MARKER)


def test_a_model_that_is_not_on_the_hub_is_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name in ("sandbox", "models/mine", str(tmp_path / "models" / "mine")):
        write_card(tmp_path, config_of(), ROWS, GAP, name, LICENCES)
        data = ModelCard.load(tmp_path / "README.md").data.to_dict()
        assert "base_model" not in data
        assert data.get("license") == ("apache-2.0" if name == "sandbox" else None)


def test_the_card_has_the_results_and_their_limits(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    assert table(text) == [
        ["sandbox.gold:Gold", "overall", "0.675", "0.729", "+0.054", "+0.036 to +0.073", "61%"],
        ["sandbox-hps", "overall", "0.300", "0.200", "−0.100", "−0.150 to −0.050", "40%"],
    ]
    assert "On 512 pairs" in text and "the 32 held-out prompts" in text
    assert "gives 33% (95 % interval 23% to 42%)" in text and "best of 16 images of the base model" in text
    assert "sandbox-hps chose the training images" in text and "sandbox.gold:Gold did not choose" in text
    assert "- sandbox-hps, a reward: Apache-2.0" in text
    assert "rounds" not in text.split("## Settings")[0] and "diversity" not in text


def test_the_card_says_what_the_run_had(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"holdout_rewards": [], "rounds": 3}
    changes["train"] = {"regularization": {"train_data_dir": "/home/somebody/photos", "proportion": 0.25}}
    rows = [ROWS[1], Row("diversity", "sandbox-hps", 32, 0.3, 0.2, -0.1, -0.2, 0.0, 0.4)]
    gap = RecoveredGap(0.0, 0.1, None, None, None)
    text = write_card(tmp_path, config_of(**changes), rows, gap, "owner/name", {}).read_text()
    assert "in 3 rounds" in text and "A share of 25% of the training images were others" in text
    assert "No other reward judged the result" in text and "One image of the tuned model" not in text
    assert "diversity is no reward" in text


def test_the_settings_give_no_place_away(tmp_path: Path) -> None:
    text = card_of(tmp_path, "/home/somebody/models/sd15", pretrained_model_name_or_path="/home/somebody/models/sd15")
    assert "somebody" not in text and "/home" not in text
    settings = yaml.safe_load(blocks(text)["yaml"])
    assert settings["pretrained_model_name_or_path"] == "sd15"
    assert (settings["output_dir"], settings["train_prompts"]) == ("mine", "prompts.txt")
    assert FilterFinetuneConfig.model_validate(settings).train == config_of().train


def test_no_setting_is_a_secret() -> None:
    secret = re.compile("token|password|secret|credential|api_?key")
    assert [key for key in leaf_fields(FilterFinetuneConfig) if secret.search(key)] == []


@pytest.mark.parametrize("nasty", ["a | b", "`code`", "</td><script>", "[x](http://y)", "*bold*\n# Title", "back\\|"])
def test_a_string_of_the_user_stays_text(nasty: str, tmp_path: Path) -> None:
    rows = [Row(nasty, nasty, *[8, *[0.0] * 6]), ROWS[1]]  # pyright: ignore[reportArgumentType]
    text = write_card(tmp_path, config_of(), rows, GAP, "owner/name", {nasty: nasty}).read_text()
    assert [len(row) for row in table(text)] == [7, 7]
    plain = re.sub(r"\\([^\w\s])", r"\1", table(text)[0][0])
    assert plain == " ".join(nasty.split())
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text.partition(MARKER)[2], flags=re.M | re.S)
    assert not re.search(r"(?<!\\)(<script|\[x\]|\*bold|`code)|^# Title", prose, re.M)


@pytest.mark.parametrize("negative", ["ugly\n```\n# Title", 'say "no"', "it's `ugly` $HOME \\ | ~~~~"])
def test_no_string_leaves_its_block_of_code(negative: str, tmp_path: Path) -> None:
    code = blocks(card_of(tmp_path, sampling={"negative_prompt": negative}))
    assert set(code) == {"python", "bash", "yaml"}
    assert yaml.safe_load(code["yaml"])["sampling"]["negative_prompt"] == negative
    options = shlex.split(code["bash"].replace("\\\n", ""))
    command = parse_command(GenerateConfig, options[2:], "align generate")
    assert command is not None and command.settings.negative_prompt == negative
    assert options[:2] == ["align", "generate"] and command.settings.lora == Path("lora")
    seen: dict[str, Any] = {}
    exec(re.sub(r"(?s).*(image = pipeline\(.*)", r"\1", code["python"]), {"pipeline": recorder(seen)})
    assert seen == {"num_inference_steps": 25, "guidance_scale": 7.5, "negative_prompt": negative}


def recorder(seen: dict[str, Any]) -> Any:
    """Stands in for a pipeline: notes what it is called with."""

    def pipeline(prompt: str, **options: Any) -> Any:
        seen.update(options)
        return type("Output", (), {"images": [prompt]})

    return pipeline


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, and a LoRA of it where the Hub's cache keeps `somebody/run`."""
    folder = tmp_path_factory.mktemp("trained")
    model = load_model(save_tiny_model(folder / "base"), torch.device("cpu"))
    lora.inject(model.denoiser, 4, 8, model.lora_target_modules, seed=0)
    for name, parameter in model.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    repository = folder / "hub" / "models--somebody--run"
    lora.save_lora(model, repository / "snapshots" / "0" / "lora")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    return folder


@pytest.mark.parametrize("where", [".", "somebody/run"])
def test_the_code_of_the_card_applies_the_lora(where: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained / "hub" / "models--somebody--run" / "snapshots" / "0"
    sampling = {"num_inference_steps": 3, "guidance_scale": 2.0}
    code = blocks(card_of(folder, str(trained / "base"), sampling=sampling))["python"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(trained / "hub"))
    code = code.replace('base = "base"', f'base = "{trained}/base"').replace('weights("."', f'weights("{where}"')
    code = code.replace("    num_inference", '    output_type="pt", generator=generator,\n    num_inference')
    names: dict[str, Any] = {"generator": torch.Generator().manual_seed(5)}
    exec(code, names)
    model = load_model(trained / "base", torch.device("cpu"))
    plain = model.sample(["a prompt"], [5], Sampling(3, 2.0))[0]
    lora.load_lora(model, folder / "lora")
    tuned = model.sample(["a prompt"], [5], Sampling(3, 2.0))[0]
    assert (names["image"] - tuned).abs().max() < 1e-5
    assert (names["image"] - plain).abs().max() > 0.01


# diffusers' DPM++ scheduler makes an array of a tensor by its square root
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_code_for_the_model_that_ships_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(WEIGHTS / "sd", torch.device("cpu"))
    lora.inject(model.denoiser, 1, 1, ["to_q"], seed=0)
    lora.save_lora(model, tmp_path / "lora")
    code = blocks(card_of(tmp_path, "sandbox", sampling={"num_inference_steps": 1, "guidance_scale": 1.0}))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code["python"], names)
    assert names["image"].size == (model.resolution, model.resolution)
    assert "--model sandbox --lora lora" in code["bash"]


def test_a_second_run_replaces_its_own_card(tmp_path: Path) -> None:
    card_of(tmp_path)
    assert "owner/other" in card_of(tmp_path, "owner/other")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_readme_of_the_user_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_bytes(b"mine \xff")
    path = tmp_path / "MODEL_CARD.md"
    for _ in range(2):
        assert write_card(tmp_path, config_of(), ROWS, GAP, "owner/name", LICENCES) == path
        assert MARKER in path.read_text()
        assert f"{tmp_path / 'README.md'} was not written by align and stays as it is" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_bytes() == b"mine \xff"
    path.write_text("mine too")
    with pytest.raises(ValueError, match="both there, and align wrote neither.*Move one of them"):
        write_card(tmp_path, config_of(), ROWS, GAP, "owner/name", LICENCES)
    assert path.read_text() == "mine too"


def test_a_card_without_the_marker_is_the_users(tmp_path: Path) -> None:
    text = card_of(tmp_path)
    (tmp_path / "README.md").write_text(re.sub(f"{MARKER}.*\n", "", text))
    assert write_card(tmp_path, config_of(), ROWS, GAP, "owner/name", LICENCES).name == "MODEL_CARD.md"
