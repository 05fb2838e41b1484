"""The console command: its help, its mistakes, and the configurations behind its sub-commands."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from recipes import cli
from recipes.configs.filter_finetune import FilterFinetuneConfig, SelectSettings
from recipes.configs.generate import GenerateConfig
from recipes.configs.score import ScoreConfig
from recipes.configuration import parse_command
from recipes.settings import leaf_fields, read_yaml

NEEDED = ["--output_dir", "o", "--train_prompts", "t", "--validation_prompts", "v", "--rewards", "sandbox-hps"]
PRESETS = sorted(Path(cli.__file__).parent.glob("configs/*/*.yaml"))


def model_of(name: str) -> Any:
    """The configuration class of a sub-command."""
    recipe = cli.RECIPES[name]
    return getattr(importlib.import_module(f"recipes.configs.{recipe.module}"), recipe.settings)


def finetune(*argv: str) -> FilterFinetuneConfig:
    """The settings of a fine-tuning run."""
    command = parse_command(FilterFinetuneConfig, [*NEEDED, *argv], "align filter-finetune")
    assert command is not None
    return command.settings


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_recipe(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.RECIPES | cli.TOOLS)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate"]) == 1
    assert 'Unknown command "genrate". Did you mean "generate"?' in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.RECIPES)
def test_every_recipe_has_help_for_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"align {name}" in capsys.readouterr().out
    assert [key for key, field in leaf_fields(model_of(name)).items() if not field.description] == []


@pytest.mark.parametrize("name", cli.RECIPES)
def test_every_recipe_has_a_main_that_takes_its_configuration(name: str) -> None:
    main = importlib.import_module(f"recipes.{cli.RECIPES[name].module}").main
    first, dry_run = inspect.signature(main).parameters.values()
    assert first.annotation is model_of(name)
    assert (dry_run.name, dry_run.annotation) == ("dry_run", bool)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_preset_is_valid(path: Path) -> None:
    model = model_of(path.parent.name.replace("_", "-"))
    assert read_yaml(path, model)
    assert parse_command(model, ["--config", str(path)], "align") is not None


def test_a_command_is_loaded_only_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Module:
        """Stands in for the recipe."""

        @staticmethod
        def main(config: ScoreConfig, *, dry_run: bool) -> None:
            seen.extend([config, dry_run])

    load = importlib.import_module
    monkeypatch.setattr(cli, "import_module", lambda name: Module if name == "recipes.score" else load(name))
    assert cli.main(["score", "folder", "--rewards", "a", "b", "--dry-run"]) == 0
    assert seen == [ScoreConfig(images=[Path("folder")], rewards=["a", "b"]), True]


def test_a_typo_in_a_preset_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "typo.yaml").write_text("train: {max_train_step: 3}\n")
    assert cli.main(["filter-finetune", "--config", str(tmp_path / "typo.yaml")]) == 1
    shown = capsys.readouterr().err
    assert "unknown key 'train.max_train_step'. Did you mean 'train.max_train_steps'?" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "argv",
    [
        ["--samples_per_prompt", "0"],
        ["--rewards"],
        ["--train.learning_rate", "0"],
        ["--train.lr_scheduler", "sine"],
        ["--train.mixed_precision", "fp8"],
        ["--select.threshold_quantile", "1.5"],
        ["--select.threshold", "0.5", "--select.threshold_quantile", "0.5"],
        ["--lora.rank", "0"],
        ["--report_to", "none", "wandb"],
        ["--sampling.guidance_scale", "0.5"],
    ],
)
def test_impossible_fine_tunings_are_refused(argv: list[str]) -> None:
    given = [*NEEDED[:-2], *argv] if argv == ["--rewards"] else [*NEEDED, *argv]
    with pytest.raises(ValueError, match=argv[-2].lstrip("-") if len(argv) > 1 else "rewards"):
        parse_command(FilterFinetuneConfig, given, "align filter-finetune")


def test_fine_tuning_settings_by_the_names_of_diffusers() -> None:
    settings = finetune("--train.learning_rate", "3e-4", "--report_to", "wandb", "--select.threshold", "null")
    assert settings.pretrained_model_name_or_path == "sandbox"
    assert settings.train.learning_rate == 3e-4
    assert settings.report_to == ["wandb"]
    assert settings.select == SelectSettings()


def test_generate_takes_no_stray_word() -> None:
    with pytest.raises(ValueError, match="stray"):
        parse_command(GenerateConfig, ["stray", "--model", "sandbox"], "align generate")
