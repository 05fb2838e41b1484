"""All that changes in a run, and its way to disk: atomic files, and checkpoints a killed run continues from.

Tensors are saved as safetensors and everything else as JSON; nothing is pickled.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Ask the system to put a file (or every file of a folder) on disk before it is given its final name."""
    for file in [path] if path.is_file() else [child for child in path.rglob("*") if child.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


@contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """Yield a temporary sibling of `path`; the file or folder written there becomes `path` only on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        _flush(temporary)
    except BaseException:
        _remove(temporary)
        raise
    if path.is_dir():
        if not temporary.is_dir():
            _remove(temporary)
            raise IsADirectoryError(errno.EISDIR, "A folder is where a file should be written. Move it away", str(path))
        _remove(path)
    os.replace(temporary, path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. The library's own error, for a full disk too, is no OSError; this one's is."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:
        raise OSError(
            f"{path} cannot be written ({error}). Make room there, and run the same command again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in their own order, NaN refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a ValueError that names it."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}). Restore the file, or delete it and run again."
        ) from error


class OtherModuleError(ValueError):
    """A checkpoint is whole, but of another module: it is not to be removed as if it were damaged."""


@dataclass(frozen=True)
class TrainState:
    """Everything that changes while training, named once: parameters, optimizer, average, loss scale, and the step.

    The learning rate, the batches and the noise are functions of the step and the seed, so they need no state. `scaler`
    is the loss scale of half-precision training, None in other precisions. `processes` says who shared the batches.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    scaler: torch.amp.GradScaler | None = None
    processes: int = 1

    def save(self, folder: Path, step: int, total_limit: int | None = None) -> Path:
        """Write `folder/checkpoint-STEP` atomically; then only the newest `total_limit` checkpoints stay."""
        path = folder / f"checkpoint-{step}"
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for name, tensors in self._tensors().items():
                save_tensors(tensors, temporary / f"{name}.safetensors")
            scale = self.scaler.state_dict() if self.scaler else None
            write_json(temporary / "state.json", {"step": step, "processes": self.processes, "scaler": scale})
        if total_limit is not None:
            for old in list_checkpoints(folder)[:-total_limit]:
                shutil.rmtree(old)
        return path

    def forget_after(self, folder: Path, step: int) -> None:
        """Remove the checkpoints of later steps: training comes to them again, and they would count as the newest."""
        for path in list_checkpoints(folder):
            if checkpoint_step(path) > step:
                shutil.rmtree(path)

    def load_latest(self, folder: Path) -> tuple[int, list[str]]:
        """Restore the newest checkpoint under `folder` that is whole.

        Returns:
            Its step, 0 where there is none, and what is wrong with each newer one, which was passed over.

        Raises:
            ValueError: A whole checkpoint of a module of other sizes.
        """
        notes: list[str] = []
        for path in reversed(list_checkpoints(folder)):
            try:
                return self._load(path), notes
            except OtherModuleError as error:
                raise ValueError(f"{path} is of another module: {error}. Train in another folder.") from error
            except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError) as error:
                notes.append(f"{path} is damaged ({type(error).__name__}: {error}).")
        return 0, notes

    def _load(self, path: Path) -> int:
        """Read all files of a checkpoint, and check the tensors, before anything is changed."""
        content = read_json(path / "state.json")
        step, scale = int(content["step"]), content.get("scaler")
        read = {name: load_file(path / f"{name}.safetensors") for name in self._tensors()}
        for targets, name in ((self.parameters, "parameters"), (self.average, "average")):
            _check_same(targets, read.get(name, {}))
        self._restore_optimizer(read["optimizer"])
        for targets, name in ((self.parameters, "parameters"), (self.average, "average")):
            _copy_into(targets, read.get(name, {}))
        if self.scaler and scale:
            self.scaler.load_state_dict(scale)
        return step

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """What is saved, by the name of its file."""
        average = {"average": self.average} if self.average else {}
        return {"parameters": self.parameters, "optimizer": self._optimizer_tensors(), **average}

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """Optimizer state as flat tensors named `PARAMETER INDEX.KEY`."""
        state: dict[int, dict[str, Tensor]] = self.optimizer.state_dict()["state"]
        return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        if not state.keys() <= set(range(len(self.parameters))):
            raise KeyError("the optimizer's state is of other parameters")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    paths = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(paths, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(path.name.removeprefix("checkpoint-"))


def _check_same(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    if targets.keys() != values.keys():
        raise KeyError(f"other tensors than this run has: {sorted(targets.keys() ^ values.keys())[:3]}")
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise OtherModuleError(f"{name} has shape {tuple(values[name].shape)} where {tuple(target.shape)} belongs")


def _copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])
