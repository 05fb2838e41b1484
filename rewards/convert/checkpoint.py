"""Read the tensors of a checkpoint, of which no code is run."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor

from rewards.convert import pickled


def read_checkpoint(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of what `torch.save` wrote.

    A dictionary with the entry `state_dict` is unwrapped; entries that are no tensors are left out.

    Arguments:
        path: The file.
        allow_pickle: Take a file that holds objects of classes besides tensors, such as a pickled module. It is then
            read by a process of its own (see `rewards.convert.pickled`).

    Raises:
        ValueError: A file that is damaged, a TorchScript archive, or no dictionary; objects of classes that are not
            allowed, or that would have to be called.
        OSError: A file that is not there, or not to be read.
    """
    is_safe = path.suffix == ".safetensors"
    try:
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickled.DAMAGED as error:
        names = [] if is_safe else pickled.foreign_names(path)
        if not names:
            raise ValueError(_damaged(path, error)) from error
        if not allow_pickle:
            raise ValueError(_dangerous(path, names)) from error
        return _read_apart(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; give a file with a dictionary of tensors.")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _read_apart(path: Path) -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "tensors.safetensors"
        # By its path: the package need not be installed. With -P: no file beside it passes for a library.
        command = [sys.executable, "-P", pickled.__file__, str(path), str(out)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(
                f"{path} was not read: {lines[-1]}. Do not use it unless you know why it does so; then "
                "load it by itself, apart from your work, and save its `state_dict()`."
            )
        return load_file(out)


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged, or is a TorchScript archive or another kind of file that would have to run its code "
        f"({pickled.reason(error)}). Get it again, or where you trust it, load it by itself, apart from your work, and "
        "save its `state_dict()`."
    )


def _dangerous(path: Path, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{path} holds not only tensors but pickled objects ({', '.join(names[:3])}{more}). Who reads such a file the "
        "usual way runs whatever its author put into it. If you trust where it comes from, give --allow-pickle: it is "
        "then read by a process of its own, which takes the tensors and runs none of the rest."
    )
