"""The record of a run: `metrics.jsonl`, mirrored to W&B where asked (this is the one door to it), and progress bars.

Only the main process logs; on the others every method does nothing, so a caller need not ask which one it is.
"""

import json
import math
import os
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from align.state import atomic_path, read_json, write_json

if TYPE_CHECKING:
    import wandb

METRICS = "metrics.jsonl"


@final
class Log:
    """The log of one run folder; a resumed run opens the same folder and continues the same record.

    Each line of `metrics.jsonl` is `{"time": ..., "phase": ..., "step": ..., NAME: VALUE, ...}`, with time in UTC. The
    file is the record and W&B a mirror: there the names are `PHASE/NAME`, drawn over `PHASE/step`.
    """

    def __init__(
        self,
        folder: Path,
        report_to: Sequence[str] = (),
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_main: bool = True,
    ) -> None:
        """Open the log; `run_name` and `config` (no secrets in it) are what W&B shows.

        Raises:
            ValueError: An unknown tracker, or W&B without a login that is not offline.
        """
        unknown = set(report_to) - {"wandb"}
        if unknown:
            raise ValueError(
                f"Unknown tracker in report_to: {', '.join(sorted(unknown))}. Known: wandb. Use that or none."
            )
        self._path = folder / METRICS
        self._is_main = is_main
        self._mirror = None
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self._path)
            self._mirror = _Wandb(folder, run_name, config or {}) if report_to else None

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Finish the W&B run, as failed where asked; `metrics.jsonl` needs no closing."""
        if self._mirror is not None:
            self._mirror.close(failed)
            self._mirror = None

    def metrics(self, step: int, values: Mapping[str, int | float], phase: str) -> None:
        """Record finite numbers of one step of a phase (steps count from 1 where something is repeated).

        Raises:
            ValueError: A value that is not finite, or a name that the record uses itself.
        """
        if not self._is_main:
            return
        for name, value in values.items():
            _check_metric(step, phase, name, value)
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "phase": phase, "step": step, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._mirror is not None:
            self._mirror.log(step, values, phase)

    def images(self, step: int, images: Mapping[str, tuple[Float[Tensor, "3 h w"], str]], phase: str) -> None:
        """Show images with their captions, by name, in W&B; without W&B nothing happens."""
        if self._mirror is not None:
            self._mirror.log(step, {name: _wandb_image(*image) for name, image in images.items()}, phase)

    def rewind(self, phase: str, step: int) -> None:
        """Forget what was recorded of a phase after `step`, since a resumed run will do it again."""
        if not self._is_main or not self._path.exists():
            return
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["phase"] != phase or row["step"] <= step]
        if len(kept) < len(rows):
            with atomic_path(self._path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    @contextmanager
    def progress(self, total: int, description: str, initial: int = 0) -> Generator["Progress", None, None]:
        """Show how far a phase is: a bar on a terminal, elsewhere a line every ten seconds, both on stderr."""
        on_terminal = sys.stderr.isatty()
        if on_terminal or not self._is_main:
            progress = _Bar(total, description, initial, disable=not self._is_main)
        else:
            progress = _Lines(total, description, initial, time.monotonic)
        try:
            yield progress
        finally:
            progress.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`, in the order they were logged; a torn last line is left out.

    Raises:
        ValueError: A damaged line.
    """
    path = folder / METRICS
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_whole_lines(path).splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not valid JSON ({error}). Delete that line and run again."
            ) from error
    return rows


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _drop_torn_line(path: Path) -> None:
    """Remove a last line without its end, as a machine that went down leaves it, so that nothing is appended to it."""
    if path.exists() and (whole := _whole_lines(path)) != path.read_bytes():
        with atomic_path(path) as temporary:
            temporary.write_bytes(whole)


def _check_metric(step: int, phase: str, name: str, value: int | float) -> None:
    if name in ("time", "phase", "step"):
        raise ValueError(f"A metric of phase {phase!r} is named {name!r}, which the record uses itself. Rename it.")
    if not math.isfinite(value):
        raise ValueError(
            f"{phase}/{name} is {value} at step {step}; metrics must be finite. Find where it stopped being finite "
            "(too high a learning rate, half precision), or leave it out where it is not defined."
        )


class Progress(ABC):
    """What a phase tells while it works."""

    @abstractmethod
    def update(self, count: int = 1) -> None:
        """Say that `count` more are done."""

    @abstractmethod
    def close(self) -> None:
        """Say that no more will come."""


@final
class _Bar(Progress):
    def __init__(self, total: int, description: str, initial: int, disable: bool) -> None:
        self._bar = tqdm(total=total, desc=description, initial=initial, disable=disable, dynamic_ncols=True)

    def update(self, count: int = 1) -> None:
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


@final
class _Lines(Progress):
    """Lines for logs and pipes, where a bar would be thousands of carriage returns."""

    def __init__(self, total: int, description: str, initial: int, clock: Callable[[], float]) -> None:
        self._total, self._description, self._initial, self._done = total, description, initial, initial
        self._clock = clock
        self._start = self._last = clock()

    def update(self, count: int = 1) -> None:
        self._done += count
        now = self._clock()
        if now - self._last >= 10:
            self._last = now
            left = (now - self._start) / (self._done - self._initial) * (self._total - self._done)
            self._print(f"{_duration(left)} left")

    def close(self) -> None:
        if self._done > self._initial:
            self._print(f"after {_duration(self._clock() - self._start)}")

    def _print(self, note: str) -> None:
        share = self._done / max(self._total, 1)
        print(
            f"{self._description}: {self._done:,} of {self._total:,} ({share:.0%}), {note}", file=sys.stderr, flush=True
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@final
class _Wandb:
    """One W&B run that belongs to a run folder: its id is in `wandb.json`, and its files stay inside the folder."""

    def __init__(self, folder: Path, run_name: str | None, config: Mapping[str, Any]) -> None:
        import wandb

        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
        self._environment = _enter_environment(_wandb_folders(folder, offline))
        self._phases: set[str] = set()
        try:
            _check_login(offline)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "align"),
                name=run_name,
                id=_run_id(folder),
                dir=folder,
                config=dict(config),
                resume=None if offline else "allow",
            )
        except wandb.Error as error:
            _leave_environment(self._environment)
            raise ValueError(
                f"W&B could not start ({error}). It needs a connection and a login; set WANDB_MODE=offline to log into "
                f"{folder} and upload later with `wandb sync`, or leave out report_to."
            ) from error
        except BaseException:
            _leave_environment(self._environment)
            raise

    def log(self, step: int, values: Mapping[str, Any], phase: str) -> None:
        if phase not in self._phases:  # each phase has its own axis: W&B's own step could not go back on resume
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
            self._phases.add(phase)
        self._run.log({f"{phase}/{name}": value for name, value in values.items()} | {f"{phase}/step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        _leave_environment(self._environment)


def _wandb_folders(folder: Path, offline: bool) -> dict[str, str]:
    """Where W&B may write: inside the run folder only. Online, the user's own login and server settings stay in use."""
    inside = {"WANDB_DIR": folder, "WANDB_DATA_DIR": folder / "wandb/data", "WANDB_CACHE_DIR": folder / "wandb/cache"}
    if offline:
        inside["WANDB_CONFIG_DIR"] = folder / "wandb/config"
    return {name: str(path.resolve()) for name, path in inside.items()}


def _enter_environment(values: Mapping[str, str]) -> dict[str, str | None]:
    """Set environment variables, which W&B reads as long as it runs; returns what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    return before


def _leave_environment(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _check_login(offline: bool) -> None:
    """Without a login W&B would ask for one at a terminal, or stop, after the work has begun."""
    import wandb

    if not offline and not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "report_to is wandb, but no W&B login was found. Run `wandb login` once (or set WANDB_API_KEY), set "
            "WANDB_MODE=offline to log into the run folder, or leave out report_to."
        )


def _run_id(folder: Path) -> str:
    """The id of the folder's W&B run: made once, so that a resumed run is the same run there."""
    path = folder / "wandb.json"
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return read_json(path)["id"]


def _wandb_image(image: Float[Tensor, "3 h w"], caption: str) -> "wandb.Image":
    import wandb

    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return wandb.Image(pixels, caption=caption)
