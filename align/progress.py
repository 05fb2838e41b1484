"""How far a phase is, on stderr: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5


class Progress(ABC):
    """What a phase tells while it works."""

    @abstractmethod
    def update(self, count: int = 1) -> None:
        """Say that `count` more are done."""

    @abstractmethod
    def close(self) -> None:
        """Say that no more will come."""


@final
class Bar(Progress):
    """A bar that redraws itself, with its rate and the time left; one that is disabled shows nothing."""

    def __init__(self, total: int, description: str, initial: int, disable: bool) -> None:
        self._bar = tqdm(total=total, desc=description, initial=initial, disable=disable, dynamic_ncols=True)

    def update(self, count: int = 1) -> None:
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


@final
class Lines(Progress):
    """Lines for logs and pipes, where a bar would be thousands of carriage returns.

    `clock` gives seconds. Rate and time left are those of this process: what it found done (`initial`) does not count.
    """

    def __init__(self, total: int, description: str, initial: int, clock: Callable[[], float]) -> None:
        self._total, self._description, self._initial, self._done = total, description, initial, initial
        self._clock = clock
        self._start = self._last = clock()

    def update(self, count: int = 1) -> None:
        self._done += count
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            spent, count = now - self._start, self._done - self._initial
            self._print(f"{_rate(count, spent)}, {_duration(spent / count * (self._total - self._done))} left")

    def close(self) -> None:
        spent, count = self._clock() - self._start, self._done - self._initial
        if count and spent >= 1:  # what took a moment is not worth a line
            self._print(f"{_rate(count, spent)}, after {_duration(spent)}")

    def _print(self, note: str) -> None:
        share = self._done / max(self._total, 1)
        print(
            f"{self._description}: {self._done:,} of {self._total:,} ({share:.0%}), {note}", file=sys.stderr, flush=True
        )


@contextmanager
def show_progress(total: int, description: str, initial: int, disable: bool) -> Generator[Progress, None, None]:
    """Show how far something is of `total`, of which `initial` were done before: a bar on a terminal, else lines."""
    if disable or sys.stderr.isatty():
        progress = Bar(total, description, initial, disable)
    else:
        progress = Lines(total, description, initial, time.monotonic)
    try:
        yield progress
    finally:
        progress.close()


def _rate(count: int, seconds: float) -> str:
    """The mean rate, as seconds for each where less than one a second is done."""
    return f"{count / seconds:,.1f} a second" if count >= seconds else f"{seconds / count:,.1f} s each"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
