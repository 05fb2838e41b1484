"""The tensors of a pickled module without its classes and without its code, in a process of their own:

    python -P rewards/convert/pickled.py CHECKPOINT OUT.safetensors

Torch's restricted unpickler reads the file: it rebuilds tensors and plain containers. Of every other class or function
that the file names, none of which is imported, it gets an inert stand-in: an object of such a class holds its
attributes, among them a module's parameters and buffers; and a file that calls one is refused.
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

DAMAGED = (
    UnpicklingError,
    SafetensorError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    struct.error,
)
"""What reading a file may raise that is damaged, or holds more than it should."""


class Inert:
    """What stands in for a class or function; its name is that of the original."""

    def __init__(self, *args: Any) -> None:
        raise ValueError(f"it calls {type(self).__name__}, which could be anything")

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def foreign_names(path: Path) -> list[str]:
    """The classes and functions that a file of `torch.save` names beyond tensors; nothing of it is run.

    Empty, too, for what `torch.save` does not write today.
    """
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path), key=lambda name: (name.startswith("torch."), name))
    except DAMAGED:
        return []


def reason(error: Exception) -> str:
    """What is wrong, without torch's advice, which is to run the file's code."""
    said = str(error).partition("Check the documentation")[0].strip().splitlines()
    return said[-1].partition(". ")[0].rstrip(".") if said else type(error).__name__


def read_inert(path: Path) -> dict[str, Tensor]:
    """The state dict of a pickled module, or the tensors of a dictionary (of its entry `state_dict` if there is one).

    Raises:
        ValueError: The file calls something, or holds no tensors. `DAMAGED` has what else there may be.
    """
    stand_ins: Any = [(type(name, (Inert,), {}), name) for name in foreign_names(path)]
    with safe_globals(stand_ins):
        content = torch.load(path, map_location="cpu", weights_only=True)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    items = content.items() if isinstance(content, dict) else _state(content)
    tensors = {key: value.detach() for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"it holds a {type(content).__name__} without tensors")
    return tensors


def _state(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """As `nn.Module.state_dict` lists a module that has become inert."""
    held: dict[str, Any] = getattr(module, "__dict__", {})
    passing = held.get("_non_persistent_buffers_set", ())
    for name, value in {**held.get("_parameters", {}), **held.get("_buffers", {})}.items():
        if name not in passing:
            yield prefix + name, value
    for name, child in held.get("_modules", {}).items():
        yield from _state(child, f"{prefix}{name}.")


def _main(path: str, out: str) -> str | None:
    """What is wrong with the file, or nothing."""
    try:
        save_file({key: tensor.contiguous() for key, tensor in read_inert(Path(path)).items()}, out)
    except DAMAGED as error:
        return reason(error)
    return None


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
