"""Checkpoints are read without running their code, also those that hold more than tensors."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rewards.convert.checkpoint import read_checkpoint
from tests.rewards import golden
from tests.rewards.pickled_module import Bomb, save_module

TENSORS = {"a": torch.arange(3)}


def test_tensors_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain.safetensors")
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save(TENSORS | {"input_resolution": 224}, tmp_path / "flat.pth")
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("plain.safetensors", "wrapped.pt", "flat.pth", "old.bin"):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == {"a"} and torch.equal(read["a"], TENSORS["a"])


def test_a_list_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; give a file with a dictionary of tensors"):
        read_checkpoint(tmp_path / "list.pt")


def _cut(path: Path) -> None:
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-500])


def _cut_safe(path: Path) -> None:
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "cut": ("x.pt", _cut),
    "cut safetensors": ("x.safetensors", _cut_safe),
    "junk": ("x.pt", lambda path: path.write_bytes(bytes(range(256)) * 9)),
    "empty": ("x.pt", lambda path: path.touch()),
    "text": ("x.pt", lambda path: path.write_text("version https://example.org\noid sha256:0\n")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_damaged_file_is_refused(damage: str, allow_pickle: bool, tmp_path: Path) -> None:
    name, write = DAMAGES[damage]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is damaged, or .* run its code \(\w.*\). Get it again") as caught:
        read_checkpoint(tmp_path / name, allow_pickle)
    assert "will likely succeed" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*TorchScript archive:UserWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "ViT-L-14.pt")
    with pytest.raises(ValueError, match="or is a TorchScript archive .*TorchScript archives passed"):
        read_checkpoint(tmp_path / "ViT-L-14.pt", allow_pickle=True)


def test_a_pickled_module_needs_leave_and_gives_its_state(tmp_path: Path) -> None:
    state, path = golden.checkpoint("mps_small"), tmp_path / "mps.pth"
    save_module(state, path)
    with pytest.raises(ValueError, match=r"pickled objects \(trainer.models.clip_model.CLIPConfig, .*--allow-pickle"):
        read_checkpoint(path)
    read = read_checkpoint(path, allow_pickle=True)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


def test_tensors_beside_a_pickled_object_need_leave(tmp_path: Path) -> None:
    path = tmp_path / "beside.pt"
    torch.save({"state_dict": TENSORS, "trainer": nn.Linear(1, 1)}, path)
    with pytest.raises(ValueError, match="give --allow-pickle"):
        read_checkpoint(path)
    assert read_checkpoint(path, allow_pickle=True).keys() == {"a"}


def test_a_module_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save(nn.ReLU(), tmp_path / "relu.pt")
    with pytest.raises(ValueError, match="was not read: it holds a .*ReLU without tensors"):
        read_checkpoint(tmp_path / "relu.pt", allow_pickle=True)


def _by_shell(marker: Path) -> Bomb:
    return Bomb(os.system, f"touch '{marker}'")  # pyright: ignore[reportDeprecated]


def _by_eval(marker: Path) -> Bomb:
    return Bomb(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()")


BOMBS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "shell": (lambda path, marker: torch.save(_by_shell(marker), path), "module posix is blocked"),
    "eval": (lambda path, marker: torch.save(_by_eval(marker), path), "it calls builtins.eval"),
    "beside tensors": (
        lambda path, marker: torch.save(TENSORS | {"b": _by_eval(marker)}, path),
        "it calls builtins.eval",
    ),
    "plain pickle": (
        lambda path, marker: path.write_bytes(pickle.dumps(_by_eval(marker), protocol=4)),
        "Unsupported operand",
    ),
    "old format": (
        lambda path, marker: torch.save(_by_eval(marker), path, _use_new_zipfile_serialization=False),
        "GLOBAL eval was not an allowed global",
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_bomb_does_not_go_off(bomb: str, tmp_path: Path) -> None:
    write, message = BOMBS[bomb]
    path, marker = tmp_path / "bomb.pt", tmp_path / "marker"
    write(path, marker)
    for allow_pickle, expected in ((False, "bomb.pt (holds not only tensors|is damaged)"), (True, message)):
        with pytest.raises(ValueError, match=expected):
            read_checkpoint(path, allow_pickle)
        assert not marker.exists()
    pickle.loads(path.read_bytes()) if bomb == "plain pickle" else torch.load(path, weights_only=False)
    assert marker.exists(), "the bomb is a dud: nothing was tested"
