"""The presets that ship: listed, copied, named on the command line, and run from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cli
from recipes.configs.filter_finetune import FilterFinetuneConfig
from recipes.configs.generate import GenerateConfig
from recipes.configuration import parse_command
from recipes.presets import presets
from recipes.prompts import SHIPPED, read_prompts

SANDBOX = Path(cli.__file__).parent / "configs" / "filter_finetune" / "sandbox.yaml"
SHIPPING = ", ".join(presets())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that is not the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of(file: str) -> FilterFinetuneConfig:
    """What `--config` and a folder give."""
    command = parse_command(FilterFinetuneConfig, ["--config", file, "--output_dir", "x"], "align filter-finetune")
    assert command is not None
    return command.settings


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_names_the_two_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", *argv]) == 0
    shown = capsys.readouterr().out
    assert "align recipes COMMAND" in shown and " ls " in shown and " cp " in shown


def test_ls_has_a_line_for_each_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["/".join(line.split()[:2]) for line in lines] == list(presets())
    comments = [path.read_text().partition("\n")[0].removeprefix("# ") for path in presets().values()]
    starts = [line.find(comment) for line, comment in zip(lines, comments, strict=True)]
    assert starts[0] > 0 and len(set(starts)) == 1, "the comments stand in one column"


def test_ls_is_answered_without_torch() -> None:
    script = "import sys; from recipes.cli import main; main(['recipes', 'ls']); print(*sys.modules)"
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "diffusers"} & set(done.stdout.splitlines()[-1].split())


def test_every_preset_says_what_it_is_for() -> None:
    assert [name for name, path in presets().items() if not path.read_text().startswith("# ")] == []


@pytest.mark.parametrize(("argv", "file"), [(["my.yaml"], "my.yaml"), ([], "sandbox.yaml")])
def test_cp_gives_the_user_a_file_of_his_own(
    argv: list[str], file: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["recipes", "cp", "filter-finetune/sandbox", *argv]) == 0
    assert (elsewhere / file).read_text() == SANDBOX.read_text()
    assert f"Run it with: align filter-finetune --config {file}" in capsys.readouterr().out


def test_cp_overwrites_nothing(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "my.yaml").write_text("mine")
    assert cli.main(["recipes", "cp", "filter-finetune/sandbox", "my.yaml"]) == 1
    assert (elsewhere / "my.yaml").read_text() == "mine"
    assert capsys.readouterr().err == (
        "error: my.yaml is there already and is not overwritten. Give another file name.\n"
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["cp", "filter-finetune/sanbox"], f"Did you mean filter-finetune/sandbox? These ship: {SHIPPING}."),
        (["cp", "zzz"], f"No preset is called 'zzz'. These ship: {SHIPPING}."),
        (["cp"], "requires an argument. See align recipes --help."),
        (["copy"], 'Unknown command "copy"'),
        (["cp", "filter-finetune/sandbox", "no/where.yaml"], "no/where.yaml: No such file or directory."),
    ],
)
def test_a_mistake_is_a_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", *argv]) == 1
    shown = capsys.readouterr().err
    assert expected in shown and "Traceback" not in shown


def test_config_takes_the_name_of_a_preset(elsewhere: Path) -> None:
    (elsewhere / "sandbox").mkdir()  # as in the checkout; a folder is no configuration
    assert settings_of("sandbox") == settings_of(str(SANDBOX))


def test_a_file_of_that_name_comes_first(elsewhere: Path) -> None:
    (elsewhere / "sandbox").write_text(SANDBOX.read_text().replace("seed: 0", "seed: 7"))
    assert settings_of("sandbox").seed == 7


def test_a_missing_file_names_the_presets() -> None:
    with pytest.raises(ValueError, match=r"no file snadbox\. Give a YAML file, or the name of a preset: sandbox\b"):
        settings_of("snadbox")
    with pytest.raises(ValueError, match="a preset: there is none here"):
        parse_command(GenerateConfig, ["--config", "sandbox"], "align generate")


def test_the_prompts_that_ship_are_found_from_any_folder() -> None:
    found = {name: len(read_prompts(Path(name))) for name in SHIPPED}
    assert found == {"sandbox:train": 192, "sandbox:validation": 32}
    with pytest.raises(ValueError, match="or the name of one that ships: sandbox:train, sandbox:validation"):
        read_prompts(Path("sandbox/prompts/train.txt"))


def test_a_preset_runs_from_any_folder(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["filter-finetune", "--config", "sandbox", "--output_dir", "x", "--dry-run"]) == 0
    assert "into x" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []
