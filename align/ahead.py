"""Batches that threads make before they are asked for, so that reading and decoding do not wait for the training."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar, final

from align.train import Batches

Batch = TypeVar("Batch")


@final
class Ahead(Generic[Batch]):
    """The same batches by the same numbers, each made once, by threads.

    Used as a context, whose end stops the threads.

    Arguments:
        batches: Safe in threads.
        workers: How many threads, and how many batches are made ahead.
        stride: From the number of one batch to that of the next that is asked for: the number of processes.
    """

    def __init__(self, batches: Batches[Batch], workers: int, stride: int = 1) -> None:
        self._batches, self._workers, self._stride = batches, workers, stride
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        self._made: dict[int, Future[Batch]] = {}

    def __enter__(self) -> "Ahead[Batch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> Batch:
        """Batch `number`, and a start on those behind it."""
        wanted = [number + self._stride * step for step in range(self._workers + 1)]
        for skipped in self._made.keys() - set(wanted):
            self._made.pop(skipped).cancel()
        for each in wanted:
            if each not in self._made:
                self._made[each] = self._pool.submit(self._batches, each)
        return self._made.pop(number).result()
