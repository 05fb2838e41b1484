"""Batches made ahead are those that were asked for, each made once, and a failure is told where it is asked for."""

import threading

import pytest

from align.ahead import Ahead


def test_each_batch_is_made_once_and_by_threads() -> None:
    made, lock = list[int](), threading.Lock()

    def batch(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        with lock:
            made.append(number)
        return number * number

    with Ahead(batch, workers=2, stride=3) as ahead:
        assert [ahead(number) for number in (1, 4, 7, 10)] == [1, 16, 49, 100]
    assert len(made) == len(set(made))
    assert set(made) >= {1, 4, 7, 10} and all(number % 3 == 1 for number in made)


def test_another_start_forgets_what_was_made_ahead() -> None:
    with Ahead(lambda number: number, workers=1) as ahead:
        assert [ahead(0), ahead(50), ahead(51), ahead(3)] == [0, 50, 51, 3]


def test_a_batch_that_cannot_be_made_fails_where_it_is_asked_for() -> None:
    def batch(number: int) -> int:
        if number == 2:
            raise ValueError("image 2 is damaged")
        return number

    with Ahead(batch, workers=3) as ahead:
        assert [ahead(0), ahead(1)] == [0, 1]
        with pytest.raises(ValueError, match="image 2 is damaged"):
            ahead(2)
