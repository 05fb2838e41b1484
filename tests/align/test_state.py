"""Atomic files, and checkpoints that give back every bit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from align.state import TrainState, atomic_path, list_checkpoints, read_json, save_tensors, write_json


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and len(list(path.parent.iterdir())) == 1


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / ".folder.tmp" / "half").touch()
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_json_goes_to_disk_and_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": [0.1, None]})
    assert read_json(path) == {"b": 1, "a": [0.1, None]}
    with pytest.raises(ValueError):
        write_json(path, {"nan": float("nan")})
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(path)


def test_tensors_that_cannot_be_written_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written .* Make room there, and run the same command again"):
        save_tensors({"a": torch.ones(3)}, tmp_path / "no such folder" / "a.safetensors")


def trained_state(seed: int) -> tuple[nn.Linear, TrainState]:
    """A module after two steps of AdamW, with its state."""
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(2):
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    parameters = dict(module.named_parameters())
    return module, TrainState(parameters, optimizer, {name: value.detach() * 2 for name, value in parameters.items()})


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path) -> None:
    module, state = trained_state(0)
    state.save(tmp_path, 2)
    other, restored = trained_state(1)
    assert restored.load_latest(tmp_path) == (2, [])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(state.average[name], restored.average[name]) for name in state.average)
    torch.testing.assert_close(state.optimizer.state_dict(), restored.optimizer.state_dict(), rtol=0, atol=0)


def test_the_newest_checkpoint_counts_by_number(tmp_path: Path) -> None:
    _, state = trained_state(0)
    assert state.load_latest(tmp_path) == (0, [])
    for step in (9, 100, 20):
        state.save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert state.load_latest(tmp_path) == (100, [])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: (path / "parameters.safetensors").write_bytes(b"half"),
    "missing": lambda path: (path / "parameters.safetensors").unlink(),
    "other tensors": lambda path: shutil.copy(path / "optimizer.safetensors", path / "parameters.safetensors"),
    "optimizer of others": lambda path: shutil.copy(path / "parameters.safetensors", path / "optimizer.safetensors"),
    "no average": lambda path: (path / "average.safetensors").unlink(),
    "torn step": lambda path: (path / "state.json").write_text('{"ste'),
    "no step": lambda path: (path / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    module, state = trained_state(0)
    state.save(tmp_path, 3)
    _, later = trained_state(1)
    DAMAGES[damage](later.save(tmp_path, 5))
    other, restored = trained_state(2)
    step, notes = restored.load_latest(tmp_path)
    assert step == 3 and len(notes) == 1
    assert "checkpoint-5 is damaged" in notes[0]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    torch.testing.assert_close(state.optimizer.state_dict(), restored.optimizer.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_a_module_of_other_sizes_is_refused_and_kept(tmp_path: Path) -> None:
    _, state = trained_state(0)
    path = state.save(tmp_path, 3)
    module = nn.Linear(4, 2)
    other = TrainState(dict(module.named_parameters()), torch.optim.AdamW(module.parameters()), state.average)
    with pytest.raises(ValueError, match=r"checkpoint-3 is of another module: weight has shape \(2, 3\) where"):
        other.load_latest(tmp_path)
    assert path.exists()


def test_where_all_are_damaged_nothing_is_changed(tmp_path: Path) -> None:
    _, state = trained_state(0)
    for step in (3, 5):
        DAMAGES["truncated"](state.save(tmp_path, step))
    module, restored = trained_state(1)
    before = [parameter.clone() for parameter in module.parameters()]
    step, notes = restored.load_latest(tmp_path)
    assert (step, len(notes)) == (0, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    _, state = trained_state(0)
    for step in (2, 4, 6, 10):
        state.save(tmp_path, step, total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-10"]


def test_the_loss_scale_is_kept(tmp_path: Path) -> None:
    _, state = trained_state(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # it makes its tensors at the first use
    scaler.update(2.0)
    replace(state, scaler=scaler).save(tmp_path, 1)
    other = torch.amp.GradScaler("cpu", init_scale=8.0)
    other.scale(torch.ones(()))
    assert replace(state, scaler=other).load_latest(tmp_path) == (1, [])
    assert other.get_scale() == 2.0
