"""Folders that hold a network: `config.json`, `model.safetensors` and `tokenizer.json`.

Nothing here unpickles: an original `.pt` file becomes such a folder once, by `align convert`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def load_tokenizer(path: Path, vocabulary: int, expected: Mapping[str, int], added: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer, and that of this network: another's would give other words without a complaint.

    Arguments:
        path: `tokenizer.json` of the tokenizers library.
        vocabulary: How many tokens the network knows.
        expected: Tokens whose ids tell the right file from others.
        added: Special tokens that the network's authors appended to the published vocabulary.

    Raises:
        ValueError: No such file, a damaged one, or one of another network.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist, and the network needs it to read prompts. Copy the one that "
            "docs/published-rewards.md names there."
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


def write_network(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], configs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write tensors and then, so that a folder cut short is not taken for a whole one, configurations.

    Arguments:
        folder: Made if it is not there. A tokenizer, if the network needs one, has to be put into it.
        tensors: By the name of their file.
        configs: By the name of theirs.

    Raises:
        OSError: The disk is full, or the folder is not to be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in configs:
        (folder / name).unlink(missing_ok=True)
    for name, state in tensors.items():
        try:
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
        except SafetensorError as error:  # the library's own, for a full disk too
            raise OSError(f"{folder / name} cannot be written ({error}). Make room there, and run it again.") from error
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
