"""Rich feedback from data to numbers as a user types it: check, train (stopped and gone on with), evaluate."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from align.train import Loss
from recipes import train_reward
from recipes.baselines import PRESET, preset
from recipes.cli import main
from recipes.configs.train_reward import TrainRewardConfig
from recipes.learner import Learner
from rewards.datasets.rich import read_rich_feedback
from rewards.load import load_reward
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.training.rahf import RahfBatch
from tests.align.test_trackers import scalars
from tests.recipes.feedback_files import save_start, write_photos
from tests.rewards.datasets.written import Row, make_rows, write_richhf

STEPS = ("--train.max_train_steps", "6", "--train.checkpointing_steps", "2", "--train.validation_steps", "3")
SMALL = (*STEPS, "--train.train_batch_size", "3", "--train.lr_warmup_steps", "1", "--train.learning_rate", "1e-3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows of RichHF-18K to learn from, and 9 to judge by, written byte by byte."""
    folder = tmp_path_factory.mktemp("richhf")
    rows = make_rows()
    write_richhf(folder, rows, "train")
    assert _joined(folder, "train") == 30
    others = [_renamed(row) for row in rows[:9]]
    shutil.rmtree(folder / "pickapic")
    write_richhf(folder, others, "dev")
    assert _joined(folder, "dev") == 9
    shutil.rmtree(folder / "pickapic")
    return folder


def _joined(folder: Path, split: str) -> int:
    """Copy the images out of Pick-a-Pic, and count the rows."""
    return len(list(read_rich_feedback(folder, split, [])))


def _renamed(row: Row) -> Row:
    return replace(row, uid=f"dev-{row.uid}")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny RAHF with its card."""
    return save_start(tmp_path_factory.mktemp("start") / "rahf")


def _train(data: Path, out: Path, *more: str) -> int:
    place = ("--data", str(data), "--output_dir", str(out), "--device", "cpu")
    return main(["train-reward", *more, *place, *SMALL])


def _stopped_at(step: int, loss: Loss[RahfBatch]) -> Loss[RahfBatch]:
    """A loss that is interrupted when it is asked for that step, of one batch each."""
    calls = list[int]()

    def stopped(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return loss(*arguments)

    return stopped


def test_a_stopped_training_ends_with_the_same_bits_and_is_loaded_and_judged(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos")
    options = ("rahf", "--network.rahf", str(start), "--captions.train_data_dir", str(photos))
    options += ("--captions.max_train_steps", "2", "--negatives.train_data_dir", str(data / "images"))
    options += ("--negatives.proportion", "0.2")
    assert _train(data, tmp_path / "whole", *options) == 0
    made = train_reward.make_learner

    def failing(*given: object) -> Learner:
        learner = made(*given)  # pyright: ignore[reportArgumentType]
        return replace(learner, loss=_stopped_at(4, learner.loss))

    with monkeypatch.context() as patch:
        patch.setattr(train_reward, "make_learner", failing)
        assert _train(data, tmp_path / "stopped", *options) == 130
    assert not (tmp_path / "stopped/reward").exists()
    assert _train(data, tmp_path / "stopped", *options) == 0
    whole, again = (load_file(tmp_path / name / "reward/model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    before = load_file(start / "model.safetensors")
    assert any(not torch.equal(before[name], whole[name]) for name in whole)

    critic = load_reward(str(tmp_path / "whole/reward"), torch.device("cpu"))
    assert critic.dimensions == SCORES
    capsys.readouterr()
    judged = ["evaluate-reward", str(tmp_path / "whole/reward"), str(start), "--data", str(data), "--split", "dev"]
    assert main([*judged, "--resamples", "100", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "9 images of 3 prompts" in printed and "Misaligned words" in printed
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["images"] == 9 and result["left_out"] == 0
    found = {(row["reward"], row["target"], row["metric"]): row for row in result["rows"]}
    assert found[str(start), "implausibility", "mse"]["n"] == 9
    assert found[str(start), "implausibility", "mse_empty"]["n"] == 5
    assert (str(tmp_path / "whole/reward"), "overall", f"PLCC above {start}") in found
    page = (tmp_path / "out/report.html").read_text()
    assert all(f"Heatmap of {name}: agrees least" in page for name in HEATMAPS)
    assert (tmp_path / "out/table.md").read_text().startswith("Pearson's correlation")


def test_scores_that_read_the_rest_are_fitted_to_all_images_at_the_end(data: Path, tmp_path: Path) -> None:
    """What is written is the best of the training with its readouts fitted, and nearer to people than that was."""
    start = save_start(tmp_path / "start", scores_read_rest=True)
    assert _train(data, tmp_path / "out", "rahf", "--network.rahf", str(start)) == 0
    best, made = (load_file(tmp_path / "out" / name / "model.safetensors") for name in ("best", "reward"))
    changed = {name for name in best if not torch.equal(best[name], made[name])}
    assert changed == {"readouts.weight", "readouts.bias"}
    shutil.copy(start / "align_reward.json", tmp_path / "out/best")
    rows = list(read_rich_feedback(data, "train", []))
    said = torch.tensor([[row.scores[name] for name in SCORES] for row in rows])
    errors = []
    for name in ("best", "reward"):
        critic = load_reward(str(tmp_path / "out" / name), torch.device("cpu"))
        errors.append((critic([row.image() for row in rows], [row.prompt for row in rows]) - said).square().mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("weights", ["towers", "none"])
def test_of_scores_that_read_the_rest_an_augmented_prompt_keeps_the_towers(
    weights: str, data: Path, tmp_path: Path
) -> None:
    """As `--config rahf_sandbox --network.form augmented-prompt` asks for."""
    start = save_start(tmp_path / "start", scores_read_rest=True)
    form = ("--network.weights", weights, "--network.form", "augmented-prompt")
    assert _train(data, tmp_path / "out", "rahf", "--network.rahf", str(start), *form) == 0
    config = json.loads((tmp_path / "out/reward/config.json").read_text())
    assert config["prompted"] and not config["scores_read_rest"]
    critic = load_reward(str(tmp_path / "out/reward"), torch.device("cpu"))
    assert critic(torch.rand(2, 3, 32, 32), ["a", "b"]).shape == (2, 4)


def test_a_resnet_is_trained_on_the_same_data(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes import learner
    from rewards.resnet import ResnetConfig
    from tests.rewards.tiny_resnet import TINY as RESNET

    monkeypatch.setattr(learner, "ResnetConfig", lambda: ResnetConfig(**RESNET))
    assert _train(data, tmp_path, "resnet50") == 0
    critic = load_reward(str(tmp_path / "reward"), torch.device("cpu"))
    said = critic(torch.rand(2, 3, 32, 32), ["a", "b"])
    assert said.shape == (2, 4)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in metrics if row["phase"] == "validation"]
    assert [row["step"] for row in looks] == [0, 3, 6]
    best = json.loads((tmp_path / "best/selection.json").read_text())
    assert best["selection"] == max(row["selection"] for row in looks)


def test_check_tells_of_good_rows_and_names_bad_ones(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(data), "--split", "train"]) == 0
    out = capsys.readouterr().out
    rows = make_rows()
    empty = sum(not row.artifacts.any() for row in rows)
    assert f"implausibility empty {empty} of 30" in " ".join(out.split())
    assert "misaligned" in out and "does not say what each person gave" in out
    bad = [replace(row, labels="1 0") if number == 4 else row for number, row in enumerate(rows)]
    write_richhf(tmp_path / "bad", bad)
    assert main(["data", "check", str(tmp_path / "bad")]) == 1
    printed = capsys.readouterr()
    assert "29 good rows, 1 bad" in printed.out and f"record 4 of train.tfrecord: {rows[4].uid}" in printed.out
    assert "named above" in printed.err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("rahf",), "must say where a rahf starts"),
        (("rahf", "--network.vit", "a"), "both a vit and a t5"),
        (("resnet50", "--network.rahf", "x"), "has no towers"),
        (("rahf", "--network.rahf", "sandbox-clip"), "which is no RAHF"),
        (("resnet50", "--network.form", "multi-head", "--loss.words", "0"), "no use for network.form, loss.words;"),
        (("resnet50", "--network.weights", "towers"), "no use for network.weights;"),
        (("resnet50", "--network.score_widths", "4", "--network.score_hidden", "4"), "score_widths, network.score_hid"),
        (("resnet50", "--train.gradient_checkpointing"), "no use for train.gradient_checkpointing;"),
        (("resnet50", "--negatives.proportion", "0.5"), "give both, a folder and a share"),
        (("resnet50", "--train_split", "nothing", "--network.image_size", "32"), "nothing.tfrecord does not exist"),
    ],
)
def test_mistakes_are_a_line(
    options: tuple[str, ...], fault: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(data, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert fault in error and "Traceback" not in error


def test_a_resolved_resnet_is_read_back() -> None:
    """It names every setting, also those that a resnet50 has no use for."""
    config = preset(PRESET, "cpu")
    assert TrainRewardConfig(**config.model_dump()) == config


def test_damaged_pictures_are_named(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(3)
    write_richhf(tmp_path / "data", rows)
    assert _joined(tmp_path / "data", "train") == 3
    picture = tmp_path / "data/images" / f"{rows[1].uid}.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    assert main(["data", "check", str(tmp_path / "data"), "--split", "train"]) == 1
    out = capsys.readouterr().out
    assert "2 good rows, 1 bad" in out and f"bad: {rows[1].uid}: its image cannot be decoded" in out
    options = ("rahf", "--network.rahf", str(start), "--dev_split", "null")
    assert _train(tmp_path / "data", tmp_path / "out", *options) == 1
    assert f"error: {rows[1].uid}: its image cannot be decoded" in capsys.readouterr().err
    picture.write_bytes(whole)
    photos = write_photos(tmp_path / "photos")
    for photo in photos.glob("*.png"):
        photo.write_bytes(photo.read_bytes()[:100])
    for stage in (("captions",), ("negatives", "--negatives.proportion", "0.9")):
        given = (f"--{stage[0]}.train_data_dir", str(photos), *stage[1:])
        assert _train(tmp_path / "data", tmp_path / stage[0], *options, *given) == 1
        assert ".png: the picture cannot be decoded" in capsys.readouterr().err


def test_captions_must_be_there(data: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos")
    lines = (photos / "metadata.jsonl").read_text().splitlines()
    (photos / "metadata.jsonl").write_text(lines[0] + "\n" + json.dumps({"file_name": "1.png", "text": " "}) + "\n")
    options = ("rahf", "--network.rahf", str(start), "--captions.train_data_dir", str(photos))
    assert _train(data, tmp_path / "out", *options) == 1
    assert f"2 of 3 pictures in {photos} have no caption, such as {photos / '1.png'};" in capsys.readouterr().err


def test_the_stage_of_captions_has_a_curve_of_its_own(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step once, also where the stage was stopped between two checkpoints; both stages count from 1."""
    options = ("rahf", "--network.rahf", str(start), "--dev_split", "null", "--report_to", "tensorboard")
    options += ("--captions.train_data_dir", str(write_photos(tmp_path / "photos")), "--captions.max_train_steps", "5")
    made, seconds = train_reward.make_learner, count(1_700_000_000)
    clock = SimpleNamespace(time=lambda: float(next(seconds)))  # event files are read by the second they were opened in
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)

    def failing(*given: object) -> Learner:
        learner = made(*given)  # pyright: ignore[reportArgumentType]
        assert learner.captioning is not None
        return replace(learner, captioning=_stopped_at(4, learner.captioning))

    with monkeypatch.context() as patch:
        patch.setattr(train_reward, "make_learner", failing)
        assert _train(data, tmp_path / "out", *options) == 130
    assert not (tmp_path / "out/tensorboard").exists()
    assert _train(data, tmp_path / "out", *options) == 0
    captions = scalars(tmp_path / "out/captions", "train", "loss")
    assert [step for step, _ in captions] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path / "out", "train", "loss")] == [1, 2, 3, 4, 5, 6]
    recorded = [json.loads(line) for line in (tmp_path / "out/captions/metrics.jsonl").read_text().splitlines()]
    assert [value for _, value in captions] == pytest.approx([row["loss"] for row in recorded], rel=1e-6)


def test_resnet50_by_its_name_is_of_the_sandbox_only(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate-reward", "resnet50", "--data", str(data), "--split", "dev"]) == 1
    assert "give runs/resnet50/reward instead" in capsys.readouterr().err


def test_files_of_somebody_else_are_not_overwritten(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("mine")
    judged = ["evaluate-reward", "sandbox-clip", "--data", str(data), "--split", "dev", "--output_dir", str(tmp_path)]
    assert main(judged) == 1
    assert "report.html, which no evaluation wrote" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_sandbox_makes_its_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes import sandbox_feedback

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox_feedback, "SIZES", {"test": ("test", 2, 2, 19)})
    folder, split = sandbox_feedback.resolve_data("sandbox-test")
    rows: list[Callable[[], object]] = [row.image for row in read_rich_feedback(folder, split or "", [])]
    assert len(rows) == 4
    before = (folder / "test.jsonl").stat().st_mtime_ns
    assert sandbox_feedback.resolve_data("sandbox-test") == (folder, "test")
    assert (folder / "test.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="no data of the sandbox"):
        sandbox_feedback.resolve_data("sandbox-other")


def test_a_second_process_waits_for_the_data_that_the_first_makes(tmp_path: Path) -> None:
    from recipes import sandbox_feedback

    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".test.lock"):  # a lock of its own, as another process has
            second = pool.submit(sandbox_feedback.make, tmp_path, "test", "test", 2, 2, 19)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.3)
            (tmp_path / "test.jsonl").write_text("made by the first")
        second.result()
    assert (tmp_path / "test.jsonl").read_text() == "made by the first" and not (tmp_path / "test").exists()
