"""From a name on the command line to a reward. The forms of a name:

    sandbox-hps                     a card of cards.yaml
    my_reward:MyReward              a user's own class, importable or in my_reward.py of the current directory
    mps.aesthetics                  one dimension of either
    sandbox-hps=2 sandbox-clip=0.5  a weighted sum (a weight left out is 1)

Nothing needs to be registered.
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from rewards.base import Reward
from rewards.combine import Dimension, Weighted


@dataclass(frozen=True)
class Card:
    """What is known about a reward with a short name; `cards.yaml` explains the fields."""

    reward: str
    weights: str
    dimensions: tuple[str, ...]
    licence: str
    paper: str
    source: str = ""
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def path(self) -> Path:
        """Where the weights are: beside the `rewards` package, in a checkout and in an installed wheel alike."""
        return Path(__file__).resolve().parent.parent / self.weights


@cache
def load_cards() -> Mapping[str, Card]:
    """All cards by their short names."""
    entries = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))
    return {name: Card(**entry | {"dimensions": tuple(entry["dimensions"])}) for name, entry in entries.items()}


def load_reward(spec: str, device: torch.device) -> Reward:
    """Load a reward by its name on the command line (see the head of this module).

    Raises:
        ValueError: An unknown name, with the nearest known ones; a class that is not a Reward; weights that are
            missing, damaged or not those of the card; an unknown dimension; a weight that is not a number.
    """
    words = spec.split()
    if not words:
        raise ValueError("An empty reward name came; name one, such as sandbox-hps.")
    find_cards(spec)  # so that a mistake in the last name does not wait for the first one's weights
    if len(words) == 1 and "=" not in spec:
        return _load_one(words[0], device)
    return Weighted([(_load_one(name, device), weight) for name, weight in map(_parse_weight, words)])


def load_rewards(specs: Sequence[str], device: torch.device) -> dict[str, Reward]:
    """Load what follows `--rewards`: rewards by their names or, where these have weights, their weighted sum."""
    names = group_specs(specs)
    find_cards(" ".join(names))
    return {name: load_reward(name, device) for name in names}


def group_specs(specs: Sequence[str]) -> list[str]:
    """What follows `--rewards`, as names for `load_reward`: `a=1 b=0.5` is one reward, `a b` are two. Loads nothing.

    Raises:
        ValueError: Names with and without weights, or the same name twice.
    """
    weighted = [spec for spec in specs if "=" in spec and " " not in spec]
    if weighted and len(weighted) < len(specs):
        plain = next(spec for spec in specs if spec not in weighted)
        raise ValueError(f"{weighted[0]} has a weight and {plain} has none; give every reward a weight, or none.")
    names = [" ".join(specs)] if weighted else list(specs)
    if len(set(names)) < len(names):
        raise ValueError(f"A reward is named twice in {' '.join(names)}; name each once.")
    return names


def find_cards(spec: str) -> list[tuple[str, Card]]:
    """The cards a name refers to, to show their licences before use. Loads nothing; a user's own class has no card.

    Raises:
        ValueError: An unknown name, with the nearest known ones.
    """
    names = [_split_dimension(word.partition("=")[0])[0] for word in spec.split()]
    return [(name, load_cards()[name]) for name in names if ":" not in name]


def slug(spec: str) -> str:
    """A file name for a reward, different for different names: `sandbox.gold:Gold` -> `sandbox.gold~Gold`."""
    return "+".join(spec.split()).translate(str.maketrans(":=", "~@"))


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_one(word: str, device: torch.device) -> Reward:
    name, dimension = _split_dimension(word)
    reward = _load_class(name, device) if ":" in name else _load_card(name, device)
    if dimension is None:
        return reward
    try:
        return Dimension(reward, dimension)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from error


def _split_dimension(word: str) -> tuple[str, str | None]:
    """Split `NAME.DIMENSION`. Names may have dots of their own, so a card's whole name wins."""
    if word in load_cards():
        return word, None
    if match := re.fullmatch(r"([\w.]+:\w+)(?:\.(\w+))?", word):
        return match[1], match[2]
    name, _, dimension = word.rpartition(".")
    if name in load_cards():
        return name, dimension
    near = get_close_matches(name or word, load_cards(), n=3, cutoff=0.4) or sorted(load_cards())
    raise ValueError(
        f"Reward {word!r} is unknown. Nearest names: {', '.join(near)}. Your own class is named as my_file:MyReward."
    )


def _parse_weight(word: str) -> tuple[str, float]:
    name, equals, weight = word.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError:
        raise ValueError(f"{word!r} must be NAME=WEIGHT with a number, such as sandbox-hps=0.5.") from None


def _load_card(name: str, device: torch.device) -> Reward:
    card = load_cards()[name]
    _verify(name, card)
    module, _, attribute = card.reward.partition(":")
    return getattr(importlib.import_module(module), attribute)(card.path, device=device, **card.args)


def _verify(name: str, card: Card) -> None:
    if not card.path.exists():
        remedy = (
            f"Get {card.source} and convert it as docs/published-rewards.md says"
            if card.source
            else "Restore or rebuild them"
        )
        raise ValueError(f"The weights of {name} are not at {card.path}. {remedy}.")
    for file, expected in card.sha256.items():
        path = card.path / file
        if not path.is_file():
            raise ValueError(f"{path}, which {name} needs, does not exist. Restore it.")
        if sha256(path) != expected:
            raise ValueError(
                f"{path} is not the file that the card of {name} describes (its SHA-256 differs). Restore it."
            )


def _load_class(name: str, device: torch.device) -> Reward:
    module, _, attribute = name.partition(":")
    found = getattr(_import(module), attribute, None)
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        came = "has no such name" if found is None else "has something else there"
        raise ValueError(f"{name} must name a subclass of rewards.base.Reward; {module} {came}.")
    if inspect.isabstract(found):
        raise ValueError(f"{name} must define {', '.join(sorted(found.__abstractmethods__))}.")
    reward = _construct(name, found, device)
    for attribute in ("dimensions", "differentiable"):
        if not hasattr(reward, attribute):
            raise ValueError(f"{name} must have the attribute {attribute}; see rewards.base.Reward.")
    return reward


def _construct(name: str, found: type[Reward], device: torch.device) -> Reward:
    signature = inspect.signature(found)
    options = {"device": device} if "device" in signature.parameters else {}
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(f"{name} must be made without arguments or with a device alone: {error}.") from error
    reward = found(**options)
    if isinstance(reward, torch.nn.Module):
        reward.to(device)
    return reward


def _import(module: str) -> Any:
    with _current_directory_importable():
        try:
            return importlib.import_module(module)
        except (ImportError, SyntaxError) as error:
            file = f"{module.replace('.', '/')}.py"
            raise ValueError(
                f"{module} cannot be imported ({error}). Put {file} into the current directory, or install it."
            ) from error


@contextmanager
def _current_directory_importable() -> Generator[None, None, None]:
    """Look into the current directory first, as `python -m` does, while a user's module is imported."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _print_digests(names: Sequence[str]) -> None:
    for name in names:
        card = load_cards()[name]
        for path in sorted(path for path in card.path.rglob("*") if path.is_file()):
            print(f"{name}  {path.relative_to(card.path)}: {sha256(path)}")


if __name__ == "__main__":
    _print_digests(sys.argv[1:] or sorted(load_cards()))
