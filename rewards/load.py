"""From a name on the command line to a reward; `rewards.names` has the forms of a name.

Nothing needs to be registered, and nothing is unpickled: networks come from safetensors and JSON.
"""

import importlib
import inspect
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rewards.base import Reward
from rewards.cards import FOLDER_CARD, Card, load_cards, read_folder_card
from rewards.combine import Dimension, Weighted
from rewards.hub import hub_folder, sha256
from rewards.names import Named, find, find_cards, group_specs, has_weight, split_weight, split_words


def load_reward(spec: str, device: torch.device) -> Reward:
    """Load a reward by its name on the command line (see `rewards.names`).

    Raises:
        ValueError: An unknown name, with the nearest known ones; a class that is not a Reward; weights that are
            missing, damaged or not those of the card; an unknown dimension; a weight that is not a number.
    """
    return load_each([spec], device)[spec]


def load_each(names: Sequence[str], device: torch.device) -> dict[str, Reward]:
    """Load several rewards as `load_reward` does; one of which several dimensions are asked for is in memory once."""
    loaded: dict[str, Reward] = {}
    return {name: _load(name, device, loaded) for name in names}


def _load(spec: str, device: torch.device, loaded: dict[str, Reward]) -> Reward:
    words = split_words(spec)
    if not any(words):
        raise ValueError("An empty reward name came; name one, such as sandbox-hps.")
    find_cards(spec)  # so that a mistake in the last name does not wait for the first one's weights
    if len(words) == 1 and not has_weight(words[0]):
        return _load_one(words[0], device, loaded)
    return Weighted([(_load_one(name, device, loaded), weight) for name, weight in map(split_weight, words)])


def load_rewards(specs: Sequence[str], device: torch.device) -> dict[str, Reward]:
    """Load what follows `--rewards`: rewards by their names or, where these have weights, their weighted sum."""
    names = group_specs(specs)
    for name in names:
        find_cards(name)
    return load_each(names, device)


def load_card(name: str, card: Card, folder: Path, device: torch.device) -> Reward:
    """The reward that a card describes, from a folder with its weights, which are verified first.

    Raises:
        ValueError: Weights that are missing, damaged, or not those that the card or the folder's own card describes.
    """
    _verify(name, card, folder)
    module, _, attribute = card.reward.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} needs {card.reward}, which this version does not have ({error}).") from error
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        raise ValueError(f"{name} needs {card.reward}, which is not a reward.")
    _check_arguments(name, found, card)
    build: Any = found  # the contract of rewards does not say how they are made; these are made of a folder
    return build(folder, device=device, **card.args)


def _load_one(word: str, device: torch.device, loaded: dict[str, Reward]) -> Reward:
    """A reward, or a dimension of one; whole ones are kept in `loaded`, and taken from there."""
    named = find(word)
    if named.name not in loaded:
        loaded[named.name] = _load_whole(named, device)
    reward = loaded[named.name]
    if named.dimension is None:
        return reward
    try:
        return Dimension(reward, named.dimension)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from error


def _load_whole(named: Named, device: torch.device) -> Reward:
    if named.card is None:
        return _load_class(named.name, device)
    folder = hub_folder(named.repository, whole=True) if named.repository else named.card.path
    return load_card(named.name, named.card, folder, device)


def _verify(name: str, card: Card, folder: Path) -> None:
    if not folder.exists():
        remedy = f"`align rewards show {name}` says how to get them" if card.source else "Restore or rebuild them"
        raise ValueError(f"The weights of {name} are not at {folder}. {remedy}.")
    digests = dict(card.sha256)
    if (folder / FOLDER_CARD).is_file():
        own = read_folder_card(folder)
        if own.reward != card.reward:
            raise ValueError(f"{folder} holds the weights of {own.reward}, and {name} is {card.reward}. Convert anew.")
        digests |= own.sha256
    for file, expected in digests.items():
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path}, which {name} needs, does not exist. Restore it.")
        if sha256(path) != expected:
            raise ValueError(
                f"{path} is not the file that the card of {name} describes (its SHA-256 differs). Restore it."
            )


def _check_arguments(name: str, found: type[Reward], card: Card) -> None:
    try:
        inspect.signature(found).bind("weights", device="device", **card.args)
    except TypeError as error:
        raise ValueError(f"{name} gives {card.reward} arguments that it does not take: {error}.") from error


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
