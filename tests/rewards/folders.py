"""Folders of tiny weights with a card of their own, here and in a cache of the Hub."""

import json
from pathlib import Path
from typing import Any

from rewards.cards import FOLDER_CARD
from rewards.hub import sha256
from tests.rewards.tiny_clip import save_tiny_clip

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_folder(folder: Path, seed: int = 0, **changed: Any) -> Path:
    """A tiny CLIP as the reward HPS, as `align convert` leaves it; `changed` replaces entries of its card."""
    save_tiny_clip(folder, seed=seed)
    weights = "open_clip_model.safetensors"
    card = {"reward": "rewards.hps:HPS", "args": {}, "dimensions": ["overall"], "licence": "CC0", "paper": "none"}
    card |= {"sha256": {weights: sha256(folder / weights)}}
    (folder / FOLDER_CARD).write_text(json.dumps(card | changed))
    return folder


def save_in_hub_cache(cache: Path, repository: str, **changed: Any) -> Path:
    """The same as a repository that has been fetched: the layout of the Hub's own cache."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    return save_folder(place / "snapshots" / COMMIT, **changed)
