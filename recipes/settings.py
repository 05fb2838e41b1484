"""A configuration and its file: the base of every recipe's settings, and YAML in and out of it."""

import difflib
from abc import ABC
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Settings(BaseModel, ABC):
    """A group of settings. Unknown keys, nan and infinity are errors; a field's docstring is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that the command line takes without their name, in this order."""


def as_yaml(settings: Settings) -> str:
    """The resolved configuration as a file that `--config` reads back to an equal one."""
    return yaml.safe_dump(settings.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, model: type[Settings]) -> dict[str, Any]:
    """The file's values by dotted key, as text.

    Raises ValueError for a key that `model` does not have, with the line it is in and the nearest real key.
    """
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error
    return {} if document is None else dict(_walk(document, model, path, prefix=""))


def leaf_fields(model: type[Settings], prefix: str = "") -> dict[str, FieldInfo]:
    """Every single setting by its dotted key, e.g. `train.learning_rate`."""
    leaves: dict[str, FieldInfo] = {}
    for key, field in _fields(model).items():
        group = _group(field)
        leaves |= leaf_fields(group, f"{prefix}{key}.") if group else {prefix + key: field}
    return leaves


def nest(model: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key as the nested mapping that `model` validates; `null` becomes None where None is allowed.

    So does nothing at all, except where a text may stand: it is one, too.
    """
    leaves, nested = leaf_fields(model), dict[str, Any]()
    for key, value in values.items():
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        kinds = get_args(leaves[key].annotation)
        nothing = ["~", "null", ["null"], *([] if str in kinds else [""])]
        place[last] = None if NoneType in kinds and value in nothing else value
    return nested


def _fields(model: type[Settings]) -> dict[str, FieldInfo]:
    """The fields by the names a user writes: a word of Python, such as `as`, is an alias."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _group(field: FieldInfo) -> type[Settings] | None:
    """The class of a field that is a group of settings."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _walk(node: yaml.Node, model: type[Settings], path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values below a YAML node, each key checked against `model`."""
    if not isinstance(node, yaml.MappingNode):
        where = f"'{prefix.rstrip('.')}'" if prefix else "a configuration"
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: {where} must hold 'key: value' lines.")
    seen: set[str] = set()
    for key_node, value in node.value:
        key, where = str(key_node.value), f"{path}, line {key_node.start_mark.line + 1}"
        if key not in _fields(model):
            raise ValueError(f"{where}: unknown key '{prefix}{key}'. {_nearest(key, model, prefix)}")
        if key in seen:
            raise ValueError(f"{where}: '{prefix}{key}' is given twice; keep one of the two.")
        seen.add(key)
        group = _group(_fields(model)[key])
        if group:
            yield from _walk(value, group, path, f"{prefix}{key}.")
        else:
            yield prefix + key, yaml.constructor.BaseConstructor().construct_object(value, deep=True)


def _nearest(key: str, model: type[Settings], prefix: str) -> str:
    """The hint after an unknown key: the nearest at its place, else the nearest anywhere below, else all of them."""
    for keys in (list(_fields(model)), list(leaf_fields(model))):
        close = difflib.get_close_matches(key, keys, n=1)
        if close:
            return f"Did you mean '{prefix}{close[0]}'?"
    return f"The keys there are: {', '.join(_fields(model))}."
