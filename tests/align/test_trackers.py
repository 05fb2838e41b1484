"""The mirrors of the record: W&B (offline, nothing outside the folder) and TensorBoard, read back as they read it."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util
from wandb.proto import wandb_internal_pb2

from align.log import Log, read_metrics

WANDB_FOLDERS = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")


class FakeRun:
    """What W&B was told."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeRun, list[dict[str, Any]]]:
    """A W&B with a login, whose `init` records its arguments and gives the fake run."""
    run, calls = FakeRun(), []

    def init(**arguments: Any) -> FakeRun:
        folders = {name: os.environ.get(name) for name in WANDB_FOLDERS}
        calls.append(arguments | folders)
        return run

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("wandb.login", Mock(return_value=True))
    monkeypatch.setattr("wandb.init", init)
    return run, calls


def test_wandb_mirrors_under_the_axis_of_each_phase(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]
) -> None:
    run, calls = fake_wandb
    with Log(tmp_path, ["wandb"], "name", {"rank": 4}) as log:
        log.metrics(1, {"loss": 0.5}, "train")
        log.metrics(0, {"gold": 0.25}, "evaluate")
    assert run.logged == [{"train/loss": 0.5, "train/step": 1}, {"evaluate/gold": 0.25, "evaluate/step": 0}]
    assert run.axes == {"train/*": "train/step", "evaluate/*": "evaluate/step"}
    assert run.exit_code == 0
    assert (calls[0]["name"], calls[0]["config"], calls[0]["resume"]) == ("name", {"rank": 4}, "allow")


def test_wandb_resumes_under_the_same_id(tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]) -> None:
    for folder in ("run", "run", "other"):
        Log(tmp_path / folder, ["wandb"]).close()
    first, again, other = (arguments["id"] for arguments in fake_wandb[1])
    assert first == again != other


def test_wandb_run_ends_as_failed_after_an_error(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]
) -> None:
    with pytest.raises(KeyError), Log(tmp_path, ["wandb"]):
        raise KeyError
    assert fake_wandb[0].exit_code == 1


def test_wandb_environment_is_left_as_it_was(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    before = dict(os.environ)
    log = Log(tmp_path, ["wandb"])
    call = fake_wandb[1][0]
    assert call["WANDB_DIR"] == str(tmp_path)
    assert call["WANDB_CONFIG_DIR"] is None  # online, the login and the server that the user configured must be found
    log.close()
    log.close()
    assert dict(os.environ) == before


def test_offline_all_wandb_folders_are_inside_the_run(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    Log(tmp_path, ["wandb"]).close()
    assert all(Path(fake_wandb[1][0][name]).is_relative_to(tmp_path) for name in WANDB_FOLDERS)


def test_wandb_images_carry_their_captions(tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]) -> None:
    pixels = torch.zeros(3, 4, 5)
    pixels[0, 1, 2] = 1.0
    with Log(tmp_path, ["wandb"]) as log:
        log.images(7, {"sample": (pixels, "a red dot")}, "watch")
    logged = fake_wandb[0].logged[0]
    image = logged["watch/sample"]
    assert (logged["watch/step"], image._caption, image.image.size) == (7, "a red dot", (5, 4))
    assert image.image.getpixel((2, 1)) == (255, 0, 0)


def test_wandb_tables_have_pictures_in_their_cells(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]
) -> None:
    first = {"prompt": "a cat", "n": 2, "image": torch.ones(3, 4, 5)}
    rows = [first, {"n": 3, "image": torch.zeros(3, 2, 2), "prompt": "a dog"}]  # in whatever order
    with Log(tmp_path, ["wandb"]) as log:
        log.table(7, "pairs", rows, "watch")
        log.table(8, "pairs", [], "watch")
    (logged,) = fake_wandb[0].logged
    table = logged["watch/pairs"]
    assert logged["watch/step"] == 7
    assert table.columns == ["prompt", "n", "image"]
    assert [row[:2] for row in table.data] == [["a cat", 2], ["a dog", 3]]
    assert [row[2].image.size for row in table.data] == [(5, 4), (2, 2)]
    assert fake_wandb[0].axes == {"watch/*": "watch/step"}


@pytest.mark.parametrize("path", ["lora", "lora/weights"])
def test_wandb_artifacts_are_files_or_folders(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], path: str
) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/weights").write_bytes(b"low rank")
    with Log(tmp_path / "run", ["wandb"]) as log:
        log.artifact(tmp_path / path, "lora", "model")
    (artifact,) = fake_wandb[0].artifacts
    assert (artifact.name, artifact.type, list(artifact.manifest.entries)) == ("lora", "model", ["weights"])
    assert Path(artifact.manifest.entries["weights"].local_path).is_relative_to(tmp_path / "run")


def test_missing_login_says_what_to_do(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.login", Mock(return_value=False))
    before = dict(os.environ)
    with pytest.raises(ValueError, match="no W&B login was found.*wandb login.*WANDB_MODE=offline"):
        Log(tmp_path, ["wandb"])
    assert dict(os.environ) == before
    assert fake_wandb[1] == []


def test_trackers_go_together(tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]]) -> None:
    with Log(tmp_path, ["wandb", "tensorboard"]) as log:
        log.metrics(1, {"loss": 0.5}, "train")
    assert fake_wandb[0].logged == [{"train/loss": 0.5, "train/step": 1}]
    assert fake_wandb[0].exit_code == 0
    assert scalars(tmp_path, "train", "loss") == [(1, 0.5)]


START = """
import os, signal, sys, torch
from pathlib import Path
from align.log import Log
folder = Path(sys.argv[1])
(folder / "lora").mkdir(parents=True)
(folder / "lora/weights").write_bytes(b"low rank")
cells = [("a cat", 0.5, torch.ones(3, 8, 8)), ("a dog", 2, torch.zeros(3, 4, 4))]
rows = [{"prompt": prompt, "score": score, "image": image} for prompt, score, image in cells]
def work(log):
    log.rewind("train", 1)
    log.metrics(2, {"loss": 0.5}, "train")
    log.images(2, {"sample": (torch.rand(3, 8, 8), "a caption")}, "train")
    log.table(2, "pairs", rows, "watch")
    log.artifact(folder / "lora", "lora", "model")
"""
TWICE = (
    START
    + """
for attempt in range(2):
    with Log(folder, ["wandb", "tensorboard"], "name", {"rank": 4}) as log:
        work(log)
"""
)
KILLED = (
    START
    + """
work(Log(folder, ["wandb", "tensorboard"], "name", {"rank": 4}))
os.kill(os.getpid(), signal.SIGKILL)
"""
)


def run_offline(tmp_path: Path, script: str) -> int:
    """Run a script whose home, working and temporary folders are in `tmp_path/outside`; returns its exit code."""
    outside = {name: tmp_path / "outside" / name for name in ("home", "here", "temporary")}
    for folder in outside.values():
        folder.mkdir(parents=True)
        (folder / "kept").write_text("as it was")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))} | {
        "HOME": str(outside["home"]),
        "TMPDIR": str(outside["temporary"]),
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    return subprocess.run(command, cwd=outside["here"], env=environment, capture_output=True, timeout=120).returncode


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


OUTSIDE = ["here", "here/kept", "home", "home/kept", "temporary", "temporary/kept"]


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log, blocks of 32 KiB of chunks, after a header of 7 bytes.

    A chunk is its checksum (4 bytes), length (2), type (1: whole record, 2: first, 3: middle, 4: last) and content.
    """
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        end = position + 7 + int.from_bytes(content[position + 4 : position + 6], "little")
        record += content[position + 7 : end]
        if content[position + 6] in (1, 4):
            yield wandb_internal_pb2.Record.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            record = b""
        position = end


def history(records: list[Any]) -> dict[str, Any]:
    """What was logged, by name; parts of pictures and tables are `NAME.PART`."""
    items = [item for record in records for item in record.history.item]
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_offline_wandb_has_it_all_and_nothing_is_outside_the_run_folder(tmp_path: Path) -> None:
    assert run_offline(tmp_path, TWICE) == 0
    assert listing(tmp_path / "outside") == OUTSIDE
    run = tmp_path / "run"
    run_id = json.loads((run / "wandb.json").read_text())["id"]
    paths = list(run.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(paths) == 2  # one for each time that the folder was opened, for the same run
    for path in paths:
        check_wandb_file(run, path)
    assert [row["step"] for row in read_metrics(run)] == [2]
    assert scalars(run, "train", "loss") == [(2, 0.5)]


def check_wandb_file(run: Path, path: Path) -> None:
    """The file has the configuration, the metric, the picture, the table and the artifact."""
    records = list(wandb_records(path))
    config = {update.key: update.value_json for record in records for update in record.run.config.update}
    assert config["rank"] == "4"
    logged = history(records)
    assert (logged["train/loss"], logged["train/step"], logged["watch/step"]) == (0.5, 2, 2)
    assert logged["train/sample.caption"] == "a caption"
    assert image_size(path.parent / "files" / logged["train/sample.path"]) == (8, 8)
    artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
    assert artifacts["model"].name == "lora"
    files = {entry.path: Path(entry.local_path) for one in artifacts.values() for entry in one.manifest.contents}
    assert all(file.is_relative_to(run) for file in files.values())
    assert files["weights"].read_bytes() == b"low rank"
    table = json.loads(files["watch/pairs.table.json"].read_text())
    assert table["columns"] == ["prompt", "score", "image"]
    assert [row[:2] for row in table["data"]] == [["a cat", 0.5], ["a dog", 2]]
    assert [image_size(files[row[2]["path"]]) for row in table["data"]] == [(8, 8), (4, 4)]


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_killed_offline_run_leaves_nothing_outside_the_run_folder(tmp_path: Path) -> None:
    assert run_offline(tmp_path, KILLED) == -signal.SIGKILL
    patience = time.monotonic() + 30
    while listing(tmp_path / "outside") != OUTSIDE and time.monotonic() < patience:
        time.sleep(0.2)  # W&B's own process sees that it is alone, and removes its sockets
    assert listing(tmp_path / "outside") == OUTSIDE


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files carry the second in which they were opened, and are read in that order: here no two have the same."""
    seconds = itertools.count(1_700_000_000)
    clock = SimpleNamespace(time=lambda: float(next(seconds)))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)


def scalars(run: Path, phase: str, name: str) -> list[tuple[int, float]]:
    """Step and value of each point that TensorBoard draws; its two readers of event files must agree on them."""
    folder = str(run / "tensorboard" / phase)
    first = event_accumulator.EventAccumulator(folder, {event_accumulator.SCALARS: 0}).Reload()
    second = plugin_event_accumulator.EventAccumulator(folder, {plugin_event_accumulator.TENSORS: 0}).Reload()
    points = [(event.step, event.value) for event in first.Scalars(name)]
    tensors = [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in second.Tensors(name)]
    assert tensors == points
    return points


def test_tensorboard_has_what_the_record_has_as_soon_as_it_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda *arguments: (time.sleep(0.02), write(*arguments)))
    with Log(tmp_path, ["tensorboard"]) as log:
        for step in range(1, 4):
            log.metrics(step, {"loss": 1 / 2**step, "images": step * 8}, "train")
        log.metrics(0, {"loss": 3.0}, "validation")
        assert scalars(tmp_path, "train", "loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
        assert scalars(tmp_path, "train", "images") == [(1, 8), (2, 16), (3, 24)]
        assert scalars(tmp_path, "validation", "loss") == [(0, 3.0)]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.usefixtures("slow_clock")
def test_resumed_run_shows_no_doubles_in_tensorboard(tmp_path: Path) -> None:
    for start, end in ((1, 8), (5, 7), (6, 10)):
        with Log(tmp_path, ["tensorboard"]) as log:
            log.rewind("train", start - 1)
            for step in range(start, end):
                log.metrics(step, {"loss": step + start / 16}, "train")
                log.images(step, {"sample": (torch.full((3, 2, 2), step / 255), "caption")}, "train")
            log.metrics(start, {"gold": 0.5}, "watch")
    began = {1: 1, 2: 1, 3: 1, 4: 1, 5: 5, 6: 6, 7: 6, 8: 6, 9: 6}
    assert scalars(tmp_path, "train", "loss") == [(step, step + start / 16) for step, start in began.items()]
    assert scalars(tmp_path, "watch", "gold") == [(1, 0.5), (5, 0.5), (6, 0.5)]
    assert [step for step, _ in pictures(tmp_path, "train", "sample")] == list(began)


@pytest.mark.usefixtures("slow_clock")
def test_rewind_within_a_run_and_to_before_its_first_step(tmp_path: Path) -> None:
    with Log(tmp_path, ["tensorboard"]) as log:
        log.rewind("watch", 3)
        assert not (tmp_path / "tensorboard").exists()
        log.metrics(0, {"gold": 0.5}, "watch")
        log.rewind("watch", -1)
        log.metrics(0, {"gold": 0.75}, "watch")
    assert scalars(tmp_path, "watch", "gold") == [(0, 0.75)]


def pictures(run: Path, phase: str, name: str) -> list[tuple[int, np.ndarray]]:
    sizes = {event_accumulator.IMAGES: 0}
    events = event_accumulator.EventAccumulator(str(run / "tensorboard" / phase), sizes).Reload().Images(name)
    return [(event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))) for event in events]


def test_tensorboard_shows_images_as_they_are(tmp_path: Path) -> None:
    image = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5]).view(1, 2, 3).repeat(3, 1, 1)
    image[0, 0, 0] = 1.0
    with Log(tmp_path, ["tensorboard"]) as log:
        log.images(7, {"sample": (image, "a caption")}, "watch")
    ((step, pixels),) = pictures(tmp_path, "watch", "sample")
    assert step == 7
    assert pixels.tolist() == [[[255, 0, 0], [64] * 3, [128] * 3], [[191] * 3, [255] * 3, [255] * 3]]


def test_tensorboard_takes_no_tables_and_no_artifacts(tmp_path: Path) -> None:
    with Log(tmp_path / "run", ["tensorboard"]) as log:
        log.table(1, "pairs", [{"prompt": "a cat"}], "watch")
        log.artifact(Path(__file__), "test", "code")
    assert list((tmp_path / "run").iterdir()) == []


def test_missing_tensorboard_says_what_to_install(
    tmp_path: Path, fake_wandb: tuple[FakeRun, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard, which cannot be imported .*`pip install tensorboard`"):
        Log(tmp_path, ["wandb", "tensorboard"])
    assert fake_wandb[1] == []
