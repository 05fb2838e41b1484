"""A toy recipe through the machinery of every recipe: values, precedence, and what each mistake answers."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from recipes.configuration import parse_command, run_command
from recipes.settings import Settings, as_yaml


class ToyTrain(Settings):
    """Training."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size."""
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    """Schedule."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Precision."""
    gradient_checkpointing: bool = False
    """Save memory."""


class ToyConfig(Settings):
    """A toy recipe."""

    positional: ClassVar[tuple[str, ...]] = ("images",)

    images: Path
    """The images."""
    rewards: list[str] = ["a"]
    """The rewards."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """N."""
    threshold: float | None = 0.5
    """Threshold."""
    target_modules: list[str] | None = None
    """Layers."""
    negative_prompt: str = ""
    """What to avoid."""
    train: ToyTrain = ToyTrain()
    """Training."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "toy.yaml"


def read(*argv: str) -> ToyConfig:
    """The settings that a command line gives."""
    command = parse_command(ToyConfig, argv, "toy")
    assert command is not None
    return command.settings


def refusal(*argv: str) -> str:
    """What a command line is refused with."""
    with pytest.raises(ValueError) as caught:
        parse_command(ToyConfig, argv, "toy")
    return str(caught.value)


def test_the_file_is_read_and_the_command_line_wins(file: Path) -> None:
    file.write_text("images: a\nrewards: [x, y=0.5]\ntrain:\n  learning_rate: 1e-4\n  lr_scheduler: cosine\n")
    assert read("--config", str(file)) == ToyConfig(
        images=Path("a"), rewards=["x", "y=0.5"], train=ToyTrain(learning_rate=1e-4, lr_scheduler="cosine")
    )
    settings = read("--config", str(file), "--train.learning_rate", "1e-5", "--rewards", "z")
    assert settings.rewards == ["z"]
    assert settings.train == ToyTrain(learning_rate=1e-5, lr_scheduler="cosine")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.learning_rate", "1e-4", 1e-4),
        ("train.learning_rate", "1E-4", 1e-4),
        ("train.mixed_precision", "no", "no"),
        ("train.gradient_checkpointing", "true", True),
        ("threshold", "null", None),
        ("threshold", "-2", -2.0),
        ("negative_prompt", "no", "no"),
        ("negative_prompt", "null", "null"),
        ("samples_per_prompt", "8", 8),
    ],
)
def test_a_value_means_the_same_in_the_file_and_on_the_command_line(
    key: str, text: str, expected: object, file: Path
) -> None:
    group, _, name = key.rpartition(".")
    file.write_text(f"{group}:\n  {name}: {text}\n" if group else f"{name}: {text}\n")
    for settings in (read("a", "--config", str(file)), read("a", f"--{key}={text}")):
        holder = getattr(settings, group) if group else settings
        assert getattr(holder, name) == expected
        assert type(getattr(holder, name)) is type(expected)


def test_lists_take_several_values_one_or_none() -> None:
    assert read("--rewards", "a", "b=0.5", "c:D", "--images", "x").rewards == ["a", "b=0.5", "c:D"]
    assert read("x", "--rewards=a").rewards == ["a"]
    assert read("x", "--rewards").rewards == []
    assert read("x", "--target_modules", "to_q", "to_k").target_modules == ["to_q", "to_k"]


def test_a_list_in_the_file_replaces_the_default_even_when_empty(file: Path) -> None:
    file.write_text("rewards: []\ntarget_modules: null\n")
    assert read("x", "--config", str(file)).rewards == []
    assert read("x", "--config", str(file)).target_modules is None


def test_null_on_the_command_line_unsets_what_the_file_sets(file: Path) -> None:
    file.write_text("threshold: 0.1\ntarget_modules: [to_q]\n")
    settings = read("x", "--config", str(file), "--threshold", "null", "--target_modules", "null")
    assert settings.threshold is None
    assert settings.target_modules is None


def test_flags_and_hyphens() -> None:
    command = parse_command(ToyConfig, ["x", "--dry-run", "--train.gradient-checkpointing"], "toy")
    assert command is not None
    assert command.dry_run
    assert command.settings.train.gradient_checkpointing


def test_the_resolved_configuration_reads_back_equal(file: Path) -> None:
    settings = read("x", "--train.learning_rate", "1e-5", "--threshold", "null", "--train.mixed_precision", "no")
    file.write_text(as_yaml(settings))
    assert read("--config", str(file)) == settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train:\n  learnin_rate: 1e-4\n",
            "line 2: unknown key 'train.learnin_rate'. Did you mean 'train.learning_rate'?",
        ),
        ("reward: [a]\n", "line 1: unknown key 'reward'. Did you mean 'rewards'?"),
        ("images: a\nlearning_rate: 1\n", "line 2: unknown key 'learning_rate'. Did you mean 'train.learning_rate'?"),
        ("train:\n  zzz: 1\n", "line 2: unknown key 'train.zzz'. The keys there are: learning_rate, lr_scheduler"),
        ("dry_run: true\n", "line 1: unknown key 'dry_run'."),
        ("images: a\nimages: b\n", "line 2: 'images' is given twice"),
        ("train: 3\n", "line 1: 'train' must hold 'key: value' lines."),
        ("- images\n", "line 1: a configuration must hold 'key: value' lines."),
        ("{a", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_key(text: str, expected: str, file: Path) -> None:
    file.write_text(text)
    message = refusal("--config", str(file))
    assert message.startswith(str(file))
    assert expected in message


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert refusal("--config", str(file)).startswith(f"{file} is not a text file")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["x", "--train.learnin_rate", "1"], "--train.learnin_rate. Did you mean --train.learning_rate?"),
        (["x", "--learning_rate", "1"], "Did you mean --train.learning_rate?"),
        (["x", "stray"], "stray"),
        (["x", "--threshold"], "--threshold requires an argument"),
        (["x", "--threshold", "1", "--threshold", "2"], "specified multiple times"),
        ([], "'images' is required: give --images, or write it in a file for --config."),
        (["x", "--train.learning_rate", "-1"], "--train.learning_rate: input should be greater than 0, but '-1'"),
        (["x", "--train.learning_rate", "nan"], "--train.learning_rate: input should be a finite number"),
        (["x", "--samples_per_prompt", "0"], "--samples_per_prompt: input should be greater than or equal to 1"),
        (["x", "--train.lr_scheduler", "cosin"], "--train.lr_scheduler: input should be 'constant' or 'cosine'"),
    ],
)
def test_a_bad_command_line_is_refused(argv: list[str], expected: str) -> None:
    assert expected in refusal(*argv)


def test_a_wrong_type_in_the_file_names_file_and_key(file: Path) -> None:
    file.write_text("images: a\ntrain: {learning_rate: fast}\nrewards: b\n")
    message = refusal("--config", str(file))
    assert f"{file}: 'train.learning_rate': input should be a valid number" in message
    assert "but 'fast' was given" in message
    assert f"{file}: 'rewards': input should be a valid list" in message


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        read("x").samples_per_prompt = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_the_help_has_docstrings_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_command(ToyConfig, ["--help"], "align toy") is None
    shown = capsys.readouterr().out
    for text in ("align toy IMAGES", "A toy recipe.", "Step size. [default: 0.001]", "[required]", "choices: constant"):
        assert text in shown


def failing(error: BaseException) -> int:
    """The exit code of a recipe that ends with `error`."""

    def main(config: ToyConfig, *, dry_run: bool) -> None:
        raise error

    return run_command(ToyConfig, main, ["x"], "toy")


def test_errors_become_a_paragraph_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(ValueError("N is 0; give at least 1.")) == 1
    assert capsys.readouterr().err == "error: N is 0; give at least 1.\n"
    assert failing(FileNotFoundError(2, "No such file or directory", "prompts.txt")) == 1
    assert capsys.readouterr().err == "error: prompts.txt: No such file or directory.\n"
    assert failing(KeyboardInterrupt()) == 130
    assert "same command again" in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(AssertionError):
        failing(AssertionError("ours"))


def test_debug_shows_the_traceback_of_a_mistake() -> None:
    with pytest.raises(ValueError, match="learnin_rate"):
        run_command(ToyConfig, lambda config, *, dry_run: None, ["x", "--debug", "--train.learnin_rate", "1"], "toy")


SCRIPT = '''
from pathlib import Path
from recipes.configuration import launch
from recipes.settings import Settings

class ToyConfig(Settings):
    """A toy recipe."""
    prompts: Path
    """The prompts."""
    rewards: list[str] = []
    """The rewards."""

def main(config: ToyConfig, *, dry_run: bool) -> None:
    print(config.prompts.read_text(), config.rewards, dry_run)

if __name__ == "__main__":
    launch(ToyConfig, main)
'''


def test_a_recipe_run_as_a_script_behaves_the_same(tmp_path: Path) -> None:
    script, file, prompts = tmp_path / "toy.py", tmp_path / "toy.yaml", tmp_path / "prompts.txt"
    script.write_text(SCRIPT)
    file.write_text(f"prompts: {prompts}\nrewards: [x]\n")

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "--config", str(file), *argv]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    missing = run()
    assert (missing.returncode, missing.stderr) == (1, f"error: {prompts}: No such file or directory.\n")
    prompts.write_text("a red circle")
    assert run("--rewards", "a", "b", "--dry-run").stdout == "a red circle ['a', 'b'] True\n"
    typo = run("--reward", "a")
    assert typo.returncode == 1
    assert typo.stderr.startswith("error: Unknown option: --reward. Did you mean --rewards?")
    assert "Traceback" in run("--debug", "--prompts", str(tmp_path / "none")).stderr
