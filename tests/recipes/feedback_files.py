"""Small data and a tiny RAHF on disk, for the tests that train a critic."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from rewards.rahf.config import RahfConfig
from rewards.rahf.network import SCORES, RahfNetwork
from tests.rewards.datasets.written import make_rows, png, write_richhf
from tests.rewards.test_rahf import TINY, save_rahf


def write_unjoined(folder: Path) -> Path:
    """12 rows of RichHF-18K to learn from and 6 to judge by, whose images are in Pick-a-Pic's files only."""
    rows = make_rows(12)
    write_richhf(folder, [replace(row, uid=f"dev-{row.uid}") for row in rows[:6]], "dev")
    (folder / "pickapic").rename(folder / "pickapic-dev")
    write_richhf(folder, rows, "train")
    return folder


def write_photos(folder: Path) -> Path:
    """Three pictures with captions."""
    folder.mkdir()
    rows = make_rows(3)
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(png(row.picture))
    lines = [json.dumps({"file_name": f"{number}.png", "text": row.prompt}) for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def save_start(folder: Path, scores_read_rest: bool = False) -> Path:
    """A tiny RAHF with its card."""
    torch.manual_seed(0)
    save_rahf(folder, RahfNetwork(RahfConfig(**TINY, scores_read_rest=scores_read_rest)))
    card = {"reward": "rewards.rahf.critic:Rahf", "dimensions": list(SCORES), "licence": "none", "paper": "none"}
    (folder / "align_reward.json").write_text(json.dumps(card))
    return folder
