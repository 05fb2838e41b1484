"""Devices, precisions and threads."""

import os
from collections.abc import Iterator

import pytest
import torch

from align.device import pick_device, pick_dtype, set_threads

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine that offers the accelerators named by the parameter."""
    present: set[str] = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if "cuda" in present else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(set(), "cpu"), ({"mps"}, "mps"), ({"cuda"}, "cuda:0"), ({"cuda", "mps"}, "cuda:0")],
    indirect=["machine"],
)
def test_auto_takes_the_fastest_that_is_there(machine: None, expected: str) -> None:
    assert str(pick_device()) == expected


@pytest.mark.parametrize("machine", [{"cuda", "mps"}], indirect=True)
@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_a_device_asked_for_is_taken(machine: None, name: str) -> None:
    assert str(pick_device(name)) == name


@pytest.mark.parametrize("machine", [{"cuda"}], indirect=True)
def test_each_process_takes_its_own_gpu(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(pick_device("cuda")) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="Process 2 .* there are 2. Start at most 2 processes"):
        pick_device("cuda")


@pytest.mark.parametrize("machine", [set[str](), {"mps"}], indirect=True)
def test_a_device_that_is_absent_is_an_error_and_never_the_cpu(machine: None) -> None:
    with pytest.raises(ValueError, match="cuda was asked for, but this machine offers"):
        pick_device("cuda")


def test_an_unknown_device_names_the_known() -> None:
    with pytest.raises(ValueError, match="'gpu' is not a device. Use auto, cuda, mps or cpu"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("mixed_precision", "dtype"),
    [("auto", torch.float32), ("no", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(mixed_precision: str, dtype: torch.dtype) -> None:
    assert pick_dtype(CPU, mixed_precision) is dtype


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_precision_on_a_gpu(has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert pick_dtype(torch.device("cuda"), "auto") is dtype


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(ValueError, match="Old GPU.* has no bf16. Use mixed_precision fp16 or no"):
        pick_dtype(torch.device("cuda"), "bf16")


def test_an_unknown_precision_names_the_known() -> None:
    with pytest.raises(ValueError, match="'half' is not a mixed_precision. Use auto, no, fp16 or bf16"):
        pick_dtype(CPU, "half")


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Six cores to run on, and the number of threads put back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ALIGN_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    yield 6
    torch.set_num_threads(before)


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (2, 3), (4, 1), (100, 1)])
def test_processes_share_the_cores(cores: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert set_threads() == threads == torch.get_num_threads()


def test_the_user_may_set_the_threads(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_NUM_THREADS", "2")
    assert set_threads() == 2 == torch.get_num_threads()


@pytest.mark.parametrize("wish", ["0", "-1", "two", "1.5"])
def test_threads_must_be_a_positive_number(cores: int, wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_NUM_THREADS", wish)
    with pytest.raises(ValueError, match=f"ALIGN_NUM_THREADS is '{wish}'"):
        set_threads()
