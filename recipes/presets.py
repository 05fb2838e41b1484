"""`align recipes ls` and `align recipes cp`: the presets that ship with the recipes, to see and to own."""

import difflib
import shlex
from importlib.resources import files
from pathlib import Path

from cyclopts import App


def presets_app() -> App:
    """The sub-command `align recipes`."""
    app = App(
        name="align recipes",
        help="The presets that ship: see them, and copy one to own it. `--config NAME` runs one as it is.",
        help_format="plaintext",
        version_flags=(),
    )
    app.command(list_presets, name="ls")
    app.command(copy_preset, name="cp")
    return app


def list_presets() -> None:
    """List the presets: recipe, name, and what it is for."""
    rows = [(*name.split("/"), _first_comment(path)) for name, path in presets().items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for recipe, preset, comment in rows:
        print(f"{recipe:<{widths[0]}}  {preset:<{widths[1]}}  {comment}".rstrip())


def copy_preset(preset: str, file: Path | None = None, /) -> None:
    """Copy a preset, comments and all, to a file of your own.

    Arguments:
        preset: RECIPE/NAME, as in `filter-finetune/sandbox`.
        file: Where to write it; NAME.yaml in the current folder if left out.

    Raises:
        ValueError: No such preset, or `file` is there already.
    """
    text = _find(preset).read_text(encoding="utf-8")
    file = file or Path(f"{preset.partition('/')[2]}.yaml")
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError as error:
        raise ValueError(f"{file} is there already and is not overwritten. Give another file name.") from error
    print(f"Wrote {file}. Run it with: align {preset.partition('/')[0]} --config {shlex.quote(str(file))}")


def presets() -> dict[str, Path]:
    """The preset files of all recipes, by RECIPE/NAME."""
    paths = Path(str(files("recipes.configs"))).glob("*/*.yaml")
    return dict(sorted((f"{path.parent.name.replace('_', '-')}/{path.stem}", path) for path in paths))


def _find(preset: str) -> Path:
    known = presets()
    if preset not in known:
        near = difflib.get_close_matches(preset, known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"No preset is called {preset!r}.{hint} These ship: {', '.join(known)}.")
    return known[preset]


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
