"""From a command line to a checked configuration: the thin layer over cyclopts that every recipe is started through.

`align NAME ...` and `accelerate launch recipes/NAME.py ...` both come through here. A value is the same text wherever
it stands: `1e-4`, `no` and `null` mean in the YAML file what they mean on the command line, since one schema (pydantic)
reads both; the command line wins. Nothing here imports torch, so a typo is answered at once.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    runtime_checkable,
)

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from recipes.errors import error_text
from recipes.settings import Settings, leaf_fields, nest, read_yaml

SettingsT = TypeVar("SettingsT", bound=Settings)
SettingsIn = TypeVar("SettingsIn", bound=Settings, contravariant=True)

COMMAND_OPTIONS: dict[str, tuple[type, str]] = {
    "config": (str, "YAML file of settings, or the name of a preset; options on the command line win over it."),
    "dry-run": (bool, "Print the resolved configuration and the plan, then stop."),
    "debug": (bool, "Show the traceback of an error."),
}


@runtime_checkable
class Main(Protocol[SettingsIn]):
    """A recipe's `main`."""

    def __call__(self, config: SettingsIn, /, *, dry_run: bool) -> None: ...


@dataclass(frozen=True)
class Command(Generic[SettingsT]):
    """A command line, read and checked."""

    settings: SettingsT
    dry_run: bool


def launch(model: type[SettingsT], main: Main[SettingsT]) -> NoReturn:
    """Run a recipe as a script: `main` with the arguments of this process, then exit."""
    sys.exit(run_command(model, main, sys.argv[1:], name=Path(sys.argv[0]).name))


def run_command(model: type[SettingsT], main: Main[SettingsT], argv: Sequence[str], name: str) -> int:
    """Read `argv` into `model`, call `main`, return the exit code. A user's mistake is a paragraph, not a traceback."""
    try:
        command = parse_command(model, argv, name)
        if command is not None:
            main(command.settings, dry_run=command.dry_run)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if "--debug" in argv:
            raise
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 1
    return 0


def parse_command(model: type[SettingsT], argv: Sequence[str], name: str) -> Command[SettingsT] | None:
    """The settings that `argv` and its `--config` file give; None when `argv` asks for help, which is then printed.

    Raises ValueError for an unknown option or key (naming the nearest real one) and for a value that `model` refuses.
    """
    given = _read_arguments(model, argv, name)
    if given is None:
        return None
    file, dry_run, _ = (given.pop(key, None) for key in ("config", "dry_run", "debug"))
    from_file = read_yaml(_find(file, model), model) if file else {}
    try:
        settings = model.model_validate(nest(model, {**from_file, **given}))
    except ValidationError as error:
        problems = [_problem(details, given, from_file, file) for details in error.errors()]
        raise ValueError("\n".join(problems)) from error
    return Command(settings, bool(dry_run))


def _find(file: str, model: type[Settings]) -> Path:
    """The file of that name, else the preset of that name, which ships in the folder beside the module of `model`."""
    if Path(file).exists() and not Path(file).is_dir():  # a pipe of the shell is a file too
        return Path(file)
    presets = {path.stem: path for path in Path(inspect.getfile(model)).with_suffix("").glob("*.yaml")}
    if file not in presets:
        choices = ", ".join(sorted(presets)) or "there is none here"
        raise ValueError(f"--config: no file {file}. Give a YAML file, or the name of a preset: {choices}.")
    return presets[file]


def _read_arguments(model: type[Settings], argv: Sequence[str], name: str) -> dict[str, Any] | None:
    """The options in `argv` by dotted key, as text; None after printing the help that was asked for."""

    def arguments(*args: str, **options: str) -> None:
        """Never called: cyclopts binds `argv` to its signature."""

    command: Any = arguments
    command.__signature__ = _signature(model)
    usage = " ".join([f"Usage: {name}", *(key.upper() for key in model.positional), "[OPTIONS]"])
    app = App(name=name, usage=usage, help=inspect.getdoc(model), help_format="plaintext", version_flags=())
    app.default(command)
    app["--help"].group = "Command"
    try:
        chosen, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        error.verbose = False
        raise ValueError(f"{error} See {name} --help.") from error
    if chosen is not command:
        chosen(*bound.args, **bound.kwargs)
        return None
    return {key.removesuffix("_").replace("__", "."): value for key, value in bound.arguments.items()}


def _signature(model: type[Settings]) -> inspect.Signature:
    """One optional parameter for each setting and command option (the file may give what `argv` does not)."""
    leaves = leaf_fields(model)
    first = [_parameter(key, leaves.pop(key), inspect.Parameter.POSITIONAL_OR_KEYWORD) for key in model.positional]
    rest = [_parameter(key, field, inspect.Parameter.KEYWORD_ONLY) for key, field in leaves.items()]
    options = [
        _option(key, hint, "FILE", text, "Command", inspect.Parameter.KEYWORD_ONLY)
        for key, (hint, text) in COMMAND_OPTIONS.items()
    ]
    return inspect.Signature([*first, *rest, *options])


def _parameter(key: str, field: FieldInfo, kind: Any) -> inspect.Parameter:
    """The parameter for one setting: text, a list of texts, or a flag."""
    hints = [field.annotation, *get_args(field.annotation)]
    token = bool if bool in hints else list[str] if any(get_origin(hint) is list for hint in hints) else str
    metavar = next((hint.__name__.upper() for hint in (int, float, Path) if hint in hints), "TEXT")
    metavar += "..." if token == list[str] else ""
    return _option(key, token, metavar, _help(field), key.rpartition(".")[0] or "Settings", kind)


def _option(key: str, token: Any, metavar: str, text: str, group: str, kind: Any) -> inspect.Parameter:
    """A parameter that the user calls by its key; a name of Python holds neither dot nor hyphen, and is no keyword."""
    option = Parameter(name=f"--{key}", metavar=metavar, help=text, group=group, consume_multiple=True, negative=())
    name = key.replace(".", "__").replace("-", "_") + "_" * iskeyword(key)
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[token | None, option])


def _help(field: FieldInfo) -> str:
    """The field's docstring, its choices and its default."""
    choices = _choices(field.annotation)
    notes = [f"choices: {', '.join(choices)}"] if choices else []
    notes.append("required" if field.is_required() else f"default: {_text(field.get_default())}")
    return f"{field.description or ''} [{'; '.join(notes)}]"


def _choices(hint: Any) -> list[str]:
    """The values of the Literal in a type, wherever it stands."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _text(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "none"
    return "null" if value is None else str(value) or "''"


def _problem(details: ErrorDetails, given: Mapping[str, Any], from_file: Mapping[str, Any], file: str | None) -> str:
    """One line for one value that the schema refuses: where it stands, what must hold, what came."""
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "missing":
        return f"'{key}' is required: give --{key}, or write it in a file for --config."
    if details["type"] == "value_error":
        return str(details.get("ctx", {}).get("error"))
    setting = next(name for name in {**given, **from_file} if f"{key}.".startswith(f"{name}."))
    where = f"--{setting}" if setting in given else f"{file}: '{setting}'"
    message = details["msg"][0].lower() + details["msg"][1:]
    return f"{where}: {message}, but {details['input']!r} was given."
