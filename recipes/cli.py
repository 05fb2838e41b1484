"""The console command `align`: one sub-command a recipe, each loaded only when it is called, and a few tools.

The help texts stand here, so that `align --help` imports no recipe; a recipe's configuration is read and checked
before the recipe itself (and torch with it) is imported.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App


@dataclass(frozen=True)
class Recipe:
    """A sub-command: where its settings and its `main` are, and its line in the help."""

    module: str
    settings: str
    summary: str


RECIPES = {
    "generate": Recipe("generate", "GenerateConfig", "Make images for a file of prompts."),
    "score": Recipe("score", "ScoreConfig", "Score a folder of images with one or more rewards."),
    "compare": Recipe("compare", "CompareConfig", "Compare two folders of images of the same prompts, pair by pair."),
    "mask": Recipe("mask", "MaskConfig", "Write the mask of what is flawed in a picture, for a tool that repaints it."),
    "convert": Recipe("convert", "ConvertConfig", "Turn the checkpoint of a published reward into a folder of ours."),
    "train-reward": Recipe("train_reward", "TrainRewardConfig", "Train a critic on what people said of images."),
    "evaluate-reward": Recipe(
        "evaluate_reward", "EvaluateRewardConfig", "Measure how far rewards agree with what people said of images."
    ),
    "repair": Recipe("repair", "RepairConfig", "Find what is wrong with pictures, repaint it, and keep the best."),
    "filter-finetune": Recipe(
        "filter_finetune",
        "FilterFinetuneConfig",
        "Generate, score, keep the best, fine-tune a LoRA on them, and compare it with the base model.",
    ),
    "reward-token": Recipe(
        "reward_token",
        "RewardTokenConfig",
        "Tie disliked images to a few words, fine-tune a LoRA, and steer away from the words.",
    ),
}

TOOLS = {
    "recipes": Recipe("presets", "presets_app", "List the presets that ship with the recipes (ls), or copy one (cp)."),
    "rewards": Recipe("reward_table", "rewards_app", "List the rewards (ls), or all that is known about one (show)."),
    "data": Recipe("data_check", "data_app", "Look at rich feedback: statistics, and every bad row (check)."),
    "doctor": Recipe("doctor", "doctor_app", "Fetch published rewards and check their scores. Needs a network."),
}
"""Commands without a configuration; in `settings` is the function that makes the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `align` with `argv` (this process's arguments by default) and return the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in RECIPES:
        return _run(name, rest)
    return _tool(name, rest) if name in TOOLS else _overview([name, *rest])


def _run(name: str, argv: Sequence[str]) -> int:
    """Run one recipe."""
    from recipes.configuration import run_command

    recipe = RECIPES[name]

    def load_and_run(config: object, /, *, dry_run: bool) -> None:
        import_module(f"recipes.{recipe.module}").main(config, dry_run=dry_run)

    model = getattr(import_module(f"recipes.configs.{recipe.module}"), recipe.settings)
    return run_command(model, load_and_run, argv, name=f"align {name}")


def _tool(name: str, argv: Sequence[str]) -> int:
    """Run a command that has no configuration."""
    tool = TOOLS[name]
    app = getattr(import_module(f"recipes.{tool.module}"), tool.settings)
    return _answer(app(), argv, f"align {name}")


def _overview(argv: Sequence[str]) -> int:
    """Answer what is not a recipe: the help, the version, or a name that nobody has."""
    from cyclopts import App

    app = App(
        name="align",
        help="Better images and better text-to-image models from human feedback. `align NAME --help` tells more.",
        help_format="plaintext",
        version=_version,
    )
    for name, recipe in (RECIPES | TOOLS).items():
        app.command(App(name=name, help=recipe.summary))
    return _answer(app, argv, "align")


def _answer(app: "App", argv: Sequence[str], name: str) -> int:
    """Run a command that is no recipe. A user's mistake is a line, not a traceback."""
    from cyclopts import CycloptsError

    from recipes.errors import error_text

    try:
        app(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        error.verbose = False
        print(f"error: {error} See {name} --help.", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1
    return 0


def _version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("align-diffusion")


if __name__ == "__main__":
    sys.exit(main())
