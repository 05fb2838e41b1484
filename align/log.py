"""The record of a run: `metrics.jsonl`, mirrored to W&B (this is the one door to it) and TensorBoard where asked.

Only the main process logs; on the others every method does nothing, so a caller need not ask which one it is.
"""

import json
import math
import os
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from align.progress import Progress, show_progress
from align.state import atomic_path, read_json, write_json

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"

Cell = str | int | float | Float[Tensor, "3 h w"]
"""What a table may hold: a picture is in [0, 1]."""


@final
class Log:
    """The log of one run folder; a resumed run opens the same folder and continues the same record.

    Each line of `metrics.jsonl` is `{"time": ..., "phase": ..., "step": ..., NAME: VALUE, ...}`, with time in UTC. The
    file is the record; W&B and TensorBoard are mirrors, and without one of them tables and pictures go nowhere.
    """

    def __init__(
        self,
        folder: Path,
        report_to: Sequence[str] = (),
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_main: bool = True,
    ) -> None:
        """Open the log, mirrored to any of "tensorboard" and "wandb"; W&B shows `run_name` and `config` (no secrets).

        Raises:
            ValueError: An unknown tracker, no TensorBoard installed, or W&B without a login that is not offline.
        """
        if unknown := set(report_to) - {"tensorboard", "wandb"}:
            raise ValueError(
                f"Unknown tracker in report_to: {', '.join(sorted(unknown))}. Known: tensorboard, wandb. Use some of "
                "these, or none."
            )
        self._path = folder / METRICS
        self._is_main = is_main
        self._mirrors: list[_Mirror] = []
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self._path)
            if "tensorboard" in report_to:
                self._mirrors.append(_TensorBoard(folder))
            if "wandb" in report_to:  # last, since a started run would have to be finished if the other failed
                self._mirrors.append(_Wandb(folder, run_name, config or {}))

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Finish the mirrors, in W&B as failed where asked; `metrics.jsonl` needs no closing."""
        while self._mirrors:
            self._mirrors.pop().close(failed)

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
        for mirror in self._mirrors:
            mirror.log(step, values, phase)

    def images(self, step: int, images: Mapping[str, tuple[Float[Tensor, "3 h w"], str]], phase: str) -> None:
        """Show images in [0, 1] by name, in W&B with their captions."""
        for mirror in self._mirrors:
            mirror.images(step, images, phase)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Cell]], phase: str) -> None:
        """Show a table in W&B: a row is column -> cell, and a picture is a cell in [0, 1]. No rows, no table.

        Raises:
            ValueError: A row with other columns than the first.
        """
        for number, row in enumerate(rows, start=1):
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"Row {number} of table {phase}/{name} has the columns {', '.join(row)}; the first row has "
                    f"{', '.join(rows[0])}. Give every row the same columns."
                )
        for mirror in self._mirrors if rows else ():
            mirror.table(step, name, rows, phase)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """Keep a copy of a file or of a folder's files in W&B, as artifact `name` of type `kind` ("model", "dataset").

        Raises:
            ValueError: A path where nothing is.
        """
        if self._is_main and not path.exists():
            raise ValueError(f"Artifact {name!r} is to be kept from {path}, where nothing is. Write it there before.")
        for mirror in self._mirrors:
            mirror.artifact(path, name, kind)

    def rewind(self, phase: str, step: int) -> None:
        """Forget what was recorded of a phase after `step`, since a resumed run will do it again."""
        for mirror in self._mirrors:
            mirror.rewind(phase, step)
        if not self._is_main or not self._path.exists():
            return
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["phase"] != phase or row["step"] <= step]
        if len(kept) < len(rows):
            with atomic_path(self._path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def progress(self, total: int, description: str, initial: int = 0) -> AbstractContextManager[Progress]:
        """Show how far a phase is: a bar on a terminal, elsewhere a line every few seconds, both on stderr."""
        return show_progress(total, description, initial, disable=not self._is_main)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`, if it is there, in the order they were logged; a torn last line is left out.

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
    content = path.read_bytes() if path.exists() else b""
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


class _Mirror(ABC):
    """A tracker that shows what it is told, as `Log` was told it."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, int | float], phase: str) -> None: ...

    @abstractmethod
    def images(self, step: int, images: Mapping[str, tuple[Float[Tensor, "3 h w"], str]], phase: str) -> None: ...

    @abstractmethod
    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Cell]], phase: str) -> None: ...

    @abstractmethod
    def artifact(self, path: Path, name: str, kind: str) -> None: ...

    @abstractmethod
    def rewind(self, phase: str, step: int) -> None: ...

    @abstractmethod
    def close(self, failed: bool) -> None: ...


def _pixels(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@final
class _TensorBoard(_Mirror):
    """Event files in `tensorboard/PHASE`, a folder for each phase since a rewind purges all that its folder has."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"report_to has tensorboard, which cannot be imported ({error}). Install it with "
                "`pip install tensorboard`, or leave it out of report_to."
            ) from error
        self._open, self._folder = SummaryWriter, folder / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}

    def log(self, step: int, values: Mapping[str, int | float], phase: str) -> None:
        for name, value in values.items():
            self._of(phase).add_scalar(name, value, step)
        self._of(phase).flush()  # what `metrics.jsonl` has must be here too when the run is killed

    def images(self, step: int, images: Mapping[str, tuple[Float[Tensor, "3 h w"], str]], phase: str) -> None:
        for name, (image, _) in images.items():
            self._of(phase).add_image(name, _pixels(image), step, dataformats="HWC")
        self._of(phase).flush()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Cell]], phase: str) -> None:
        """TensorBoard has no tables."""

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """TensorBoard has no artifacts."""

    def rewind(self, phase: str, step: int) -> None:
        """Open a file that tells readers to drop what the phase's earlier files have after `step`."""
        if (self._folder / phase).exists():
            if phase in self._writers:
                self._writers.pop(phase).close()
            self._of(phase, purge_step=step + 1)

    def close(self, failed: bool) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _of(self, phase: str, purge_step: int | None = None) -> "SummaryWriter":
        if phase not in self._writers:
            path = self._folder / phase
            first = None if path.exists() else 0  # readers take a purge as one only if the first file has one as well
            self._writers[phase] = self._open(str(path), purge_step=first if purge_step is None else purge_step)
        return self._writers[phase]


@final
class _Wandb(_Mirror):
    """One W&B run that belongs to a run folder: its id is in `wandb.json`, and its files stay inside the folder.

    The names are `PHASE/NAME`, drawn over `PHASE/step`.
    """

    def __init__(self, folder: Path, run_name: str | None, config: Mapping[str, Any]) -> None:
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
        self._temporary = (folder / "wandb/tmp").resolve()
        self._phases: set[str] = set()
        with ExitStack() as stack:
            stack.enter_context(_environment(_wandb_folders(folder, offline)))
            with _temporary_files(self._temporary):
                _check_login(offline)
                self._run = _wandb_run(folder, run_name, config, offline)
            self._environment = stack.pop_all()

    def log(self, step: int, values: Mapping[str, Any], phase: str) -> None:
        if phase not in self._phases:  # each phase has its own axis: W&B's own step could not go back on resume
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
            self._phases.add(phase)
        self._run.log({f"{phase}/{name}": value for name, value in values.items()} | {f"{phase}/step": step})

    def images(self, step: int, images: Mapping[str, tuple[Float[Tensor, "3 h w"], str]], phase: str) -> None:
        with _temporary_files(self._temporary):
            self.log(step, {name: _wandb_image(*image) for name, image in images.items()}, phase)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Cell]], phase: str) -> None:
        import wandb

        with _temporary_files(self._temporary):
            table = wandb.Table(columns=[*rows[0]])
            for row in rows:
                cells = [row[column] for column in rows[0]]
                table.add_data(*(_wandb_image(cell) if isinstance(cell, Tensor) else cell for cell in cells))
            self.log(step, {name: table}, phase)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        import wandb

        with _temporary_files(self._temporary):
            artifact = wandb.Artifact(name, type=kind)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            self._run.log_artifact(artifact)

    def rewind(self, phase: str, step: int) -> None:
        """W&B keeps both: the repeated steps are drawn at the same place of the phase's axis."""

    def close(self, failed: bool) -> None:
        with self._environment:
            self._run.finish(exit_code=int(failed))


def _wandb_run(folder: Path, run_name: str | None, config: Mapping[str, Any], offline: bool) -> "wandb.Run":
    import wandb

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "align"),
            name=run_name,
            id=_run_id(folder),
            dir=folder,
            config=dict(config),
            resume=None if offline else "allow",
        )
    except wandb.Error as error:
        raise ValueError(
            f"W&B could not start ({error}). It needs a connection and a login; set WANDB_MODE=offline to log into "
            f"{folder} and upload later with `wandb sync`, or leave out report_to."
        ) from error


def _wandb_folders(folder: Path, offline: bool) -> dict[str, str]:
    """Where W&B may write: inside the run folder only. Online, the user's own login and server settings stay in use."""
    inside = {"WANDB_DIR": folder, "WANDB_DATA_DIR": folder / "wandb/data", "WANDB_CACHE_DIR": folder / "wandb/cache"}
    if offline:
        inside["WANDB_CONFIG_DIR"] = folder / "wandb/config"
    return {name: str(path.resolve()) for name, path in inside.items()}


@contextmanager
def _temporary_files(folder: Path) -> Generator[None, None, None]:
    """Have Python's temporary files in `folder`: W&B puts pictures and tables there first, and a kill leaves them.

    Only around calls of W&B: elsewhere temporary files may be sockets, whose paths must be short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None, None, None]:
    """Set environment variables, which W&B reads as long as it runs."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


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


def _wandb_image(image: Float[Tensor, "3 h w"], caption: str | None = None) -> "wandb.Image":
    import wandb

    return wandb.Image(_pixels(image), caption=caption)
