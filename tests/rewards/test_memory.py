"""What a network has read of prompts: each is read once, and nothing stale is ever given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rewards.memory import PromptMemory


class Reader:
    """Reads a prompt as its length, twice; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts: list[str]) -> Tensor:
        self.asked.append(prompts)
        return torch.tensor([[len(prompt), len(prompt)] for prompt in prompts], dtype=torch.float32)


def _lengths(rows: Tensor) -> list[float]:
    assert rows.shape[1:] == (2,)
    return rows[:, 0].tolist()


def _read(memory: PromptMemory, reader: Reader, prompts: Sequence[str]) -> list[float]:
    with torch.no_grad():
        return _lengths(memory.read(prompts, reader))


def test_a_closed_memory_reads_each_different_prompt_of_a_batch_once() -> None:
    memory, reader = PromptMemory(), Reader()
    for _ in range(2):
        assert _read(memory, reader, ["abc", "a", "abc"]) == [3, 1, 3]
    assert reader.asked == [["abc", "a"]] * 2


def test_an_open_memory_reads_only_what_is_new() -> None:
    memory, reader = PromptMemory(), Reader()
    with memory.open():
        assert _read(memory, reader, ["abc", "a", "abc"]) == [3, 1, 3]
        assert _read(memory, reader, ["ab", "abc", "ab"]) == [2, 3, 2]
        assert _read(memory, reader, ["a", "ab"]) == [1, 2]
    assert reader.asked == [["abc", "a"], ["ab"]]


def test_nothing_outlives_the_block() -> None:
    memory, reader = PromptMemory(), Reader()
    for _ in range(2):
        with memory.open():
            _read(memory, reader, ["a"])
    assert reader.asked == [["a"], ["a"]]


def test_with_gradients_nothing_is_kept_and_nothing_is_given() -> None:
    memory, reader, weight = PromptMemory(), Reader(), torch.ones(1, requires_grad=True)
    with memory.open():
        for _ in range(2):
            rows = memory.read(["abc"], lambda prompts: reader(prompts) * weight)
            weight.grad = None
            rows.sum().backward()
            assert weight.grad is not None and weight.grad.item() == 6
        assert _read(memory, reader, ["abc"]) == [3]
        assert memory.read(["abc"], lambda prompts: reader(prompts) * weight).requires_grad
    assert len(reader.asked) == 4


def test_the_least_recently_used_go_first() -> None:
    memory, reader = PromptMemory(size=2 * 8), Reader()
    with memory.open():
        _read(memory, reader, ["a", "ab"])
        _read(memory, reader, ["a"])
        assert _read(memory, reader, ["abc"]) == [3]
        assert _read(memory, reader, ["a", "ab"]) == [1, 2]
    assert reader.asked == [["a", "ab"], ["abc"], ["ab"]]


def test_a_batch_may_be_larger_than_the_memory() -> None:
    memory, reader = PromptMemory(size=8), Reader()
    with memory.open():
        assert _read(memory, reader, ["a", "ab", "abc"]) == [1, 2, 3]
        assert _read(memory, reader, ["abc"]) == [3]
    assert reader.asked == [["a", "ab", "abc"]]
