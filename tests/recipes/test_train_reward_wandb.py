"""A critic's training mirrored to W&B, offline: both stages' curves, its pictures with captions, and what it made."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.align.test_trackers import history, wandb_records
from tests.recipes.feedback_files import save_start, write_photos, write_unjoined

SETTINGS = {
    "train.max_train_steps": 2,
    "train.validation_steps": 2,
    "train.train_batch_size": 2,
    "train.lr_warmup_steps": 1,
    "captions.max_train_steps": 3,
    "report_to": "wandb",
    "device": "cpu",
}


def test_offline_wandb_has_curves_pictures_and_the_reward(tmp_path: Path) -> None:
    data, start, out = write_unjoined(tmp_path / "data"), save_start(tmp_path / "start"), tmp_path / "an output"
    photos = write_photos(tmp_path / "photos")
    settings = SETTINGS | {"data": data, "network.rahf": start, "output_dir": out, "captions.train_data_dir": photos}
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "recipes.cli", "train-reward", "rahf", *options]
    environment = os.environ | {"ALIGN_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (first,) = out.glob("captions/wandb/offline-run-*/run-*.wandb")
    learned = list(wandb_records(first))
    assert "train/loss" in history(learned) and history(learned)["train/step"] == 3
    assert {record.run.display_name for record in learned if record.HasField("run")} == {"an output-captions"}
    (file,) = out.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(file))
    logged = history(records)
    assert {"train/loss", "validation/selection", "validation/PLCC", "validation/CC", "validation/F1"} <= logged.keys()
    names = [f"validation/{name}_{number:02d}" for number in range(6) for name in ("implausibility", "misalignment")]
    assert all(logged[f"{name}.caption"] for name in names)
    files = file.parent / "files"
    sizes = [_size(files / logged[f"{name}.path"]) for name in names]
    assert sizes == [(3 * (16 + number), 24) for number in range(6) for _ in range(2)]  # picture, people, critic
    assert len(list((files / "media/images/validation").glob("*.png"))) == 2 * 12  # before the first step, at the last
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert artifact.name == "reward" and "model.safetensors" in {one.path for one in artifact.manifest.contents}


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
