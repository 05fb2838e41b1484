"""Folders that hold a network: `config.json`, `model.safetensors` and `tokenizer.json`; and the weights of others.

Nothing here unpickles: an original `.pt` file becomes such a folder once, by `translate` and `write_network`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

Config = TypeVar("Config")


def read_config(folder: Path, kind: type[Config]) -> Config:
    """The sizes of a network, as a dataclass; what `config.json` leaves out has the published value.

    Raises:
        ValueError: No such file, no JSON object, or an entry that `kind` does not have.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}; give a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()})
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON object with the fields of {kind.__name__}: {error}.") from error


def load_weights(network: nn.Module, folder: Path, tied: Mapping[str, str] | None = None) -> None:
    """Fill a network with the tensors of a folder, which must be exactly its own.

    Arguments:
        network: Takes the tensors.
        folder: Has `model.safetensors`.
        tied: Further names of tensors, each with the name that the file stores them under once.

    Raises:
        ValueError: No such file, a damaged one, or tensors that do not fit, all of them named.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{path} does not exist; weights are read from safetensors only. Restore or convert the file.")
    try:
        state = load_file(path)
        network.load_state_dict(state | {name: state[stored] for name, stored in (tied or {}).items()})
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the weights that {CONFIG} beside it describes: {error}") from error


def load_tokenizer(folder: Path, vocabulary: int, expected: Mapping[str, int], added: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a folder, and of this network: another's would give other words without a complaint.

    Arguments:
        folder: Has `tokenizer.json` of the tokenizers library.
        vocabulary: How many tokens the network knows.
        expected: Tokens whose ids tell the right file from others.
        added: Special tokens that the network's authors appended to the published vocabulary.

    Raises:
        ValueError: No such file, a damaged one, or one of another network.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {TOKENIZER}, which the network needs to read prompts. Copy the one that "
            "docs/published-rewards.md names beside the weights."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a file of the tokenizers library: {error}. Restore it.") from error
    tokenizer.add_special_tokens(list(added))
    if tokenizer.get_vocab_size() > vocabulary:
        raise ValueError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, the network knows {vocabulary}. Copy the right one there."
        )
    if wrong := [token for token, number in expected.items() if tokenizer.token_to_id(token) != number]:
        raise ValueError(
            f"{path} is of another network: {wrong[0]} is token {tokenizer.token_to_id(wrong[0])} in it, and "
            f"{expected[wrong[0]]} here. Copy the one that docs/published-rewards.md names there."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def write_network(folder: Path, config: Any, state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`; `tokenizer.json` has to be put beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # written last: a folder that has it is whole
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """What a network expects in its state dict."""
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def translate(
    original: Mapping[str, Tensor],
    expected: Mapping[str, torch.Size],
    renames: Sequence[tuple[str, str]],
    unused: Sequence[str] = (),
) -> dict[str, Tensor]:
    """A state dict of another code base under our names.

    Arguments:
        original: State dict as that code base stores it.
        expected: Our names with their shapes.
        renames: Pairs of a regular expression and its replacement; applied to one of our names in this order they give
            the original name.
        unused: Regular expressions of original names that play no part in the result.

    Raises:
        ValueError: Names that are missing, unexpected or have another shape, with what was expected and what was found.
    """
    sources = {ours: _rename(ours, renames) for ours in expected}
    problems = [
        *(_misfit(theirs, expected[ours], original) for ours, theirs in sources.items()),
        *(_surplus(key, tensor, unused) for key, tensor in original.items() if key not in set(sources.values())),
    ]
    found = [problem for problem in problems if problem]
    if found:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"The weights do not fit: {'; '.join(found[:5])}{more}. Give the file and sizes that belong together."
        )
    return {ours: original[theirs] for ours, theirs in sources.items()}


def _rename(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _misfit(key: str, shape: torch.Size, original: Mapping[str, Tensor]) -> str | None:
    if key not in original:
        return f"{key} is missing (expected {tuple(shape)})"
    found = original[key].shape
    return None if found == shape else f"{key} must be {tuple(shape)}, found {tuple(found)}"


def _surplus(key: str, tensor: Tensor, unused: Sequence[str]) -> str | None:
    known = any(re.fullmatch(pattern, key) for pattern in unused)
    return None if known else f"{key} {tuple(tensor.shape)} is unexpected"
