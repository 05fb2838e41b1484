"""What is known about a reward before it is loaded: the cards of `cards.yaml`, and the card that a folder carries.

Nothing here needs torch or the network, so that listing the rewards is quick.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import yaml

FOLDER_CARD = "align_reward.json"
"""The card in a folder of converted or trained weights."""
FOLDER_KINDS: Mapping[str, type] = MappingProxyType(
    {"reward": str, "dimensions": list, "licence": str, "paper": str, "commercial": str, "args": dict, "sha256": dict}
)


@dataclass(frozen=True)
class Source:
    """A file that others publish: in a `repository` of the Hugging Face Hub, at a `url`, or on a `page` for people.

    Attributes:
        file: Its name there.
        revision: The commit of the repository, 40 hexadecimal digits.
        sha256: Its digest, where known.
        size: In bytes, where known.
        pickled: Whether it holds objects besides tensors, which only `align convert --allow-pickle` reads.
    """

    file: str
    repository: str = ""
    revision: str = ""
    url: str = ""
    page: str = ""
    sha256: str = ""
    size: int = 0
    pickled: bool = False

    @property
    def place(self) -> str:
        """Where it is published, as people write it."""
        return f"huggingface.co/{self.repository}" if self.repository else self.url or self.page


@dataclass(frozen=True)
class Check:
    """A picture with what the reward must say about it: a published `score`, or more than for a `wrong` prompt.

    With neither, the score must only be near the range that the card states.

    Attributes:
        image: Its address; `sha256` is its digest.
        tolerance: How far from `score` is still right, in the reward's scale.
        dimension: Which of the scores; the first if left out.
        source: Where the score is published.
    """

    image: str
    sha256: str
    prompt: str
    score: float | None = None
    tolerance: float = 0.0
    wrong: str = ""
    dimension: str = ""
    source: str = ""

    @property
    def file(self) -> str:
        """The picture's name."""
        return unquote(self.image.rpartition("/")[2])


@dataclass(frozen=True)
class Card:
    """What is known about one reward; `cards.yaml` explains the fields. What is empty is not known."""

    name: str
    reward: str
    dimensions: tuple[str, ...]
    licence: str
    paper: str
    commercial: str = "unclear"
    weights: str = ""
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    checkpoint: Source | None = None
    clip: Source | None = None
    tokenizer: Source | None = None
    parameters: str = ""
    range: tuple[float, float] | None = None
    scale: str = ""
    accuracy: str = ""
    check: tuple[Check, ...] = ()

    @property
    def path(self) -> Path:
        """Where the weights are; where they are nowhere yet, the folder to convert them into."""
        package = Path(__file__).resolve().parent.parent
        if self.weights:
            return package / self.weights
        checkout = package / "rewards/published" / self.name
        return checkout if checkout.exists() else home() / "rewards" / self.name

    @property
    def sources(self) -> dict[str, Source]:
        """The published files that the weights are made of, by their roles."""
        roles = {"checkpoint": self.checkpoint, "clip": self.clip, "tokenizer": self.tokenizer}
        return {role: source for role, source in roles.items() if source}

    @property
    def source(self) -> str:
        """Where the weights are published, in words; empty for those that come with this repository."""
        return " and ".join(f"{source.file} of {source.place}" for source in self.sources.values())


def home() -> Path:
    """The user's own folder for weights and pictures: `ALIGN_HOME`, or `~/.cache/align`."""
    return Path(os.environ.get("ALIGN_HOME") or "~/.cache/align").expanduser().absolute()


@cache
def load_cards() -> Mapping[str, Card]:
    """All cards by their short names."""
    entries = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))
    return {name: _card(name, entry) for name, entry in entries.items()}


def read_folder_card(folder: Path) -> Card:
    """The card that a folder of weights carries in `align_reward.json`, see docs/rewards.md.

    Raises:
        ValueError: No such file, a damaged one, one without a reward, its dimensions, licence and paper, or one that
            names code from outside this package, which is never run.
    """
    path = folder / FOLDER_CARD
    if not path.is_file():
        raise ValueError(f"{folder} has no {FOLDER_CARD}; give a folder that `align convert` or a training wrote.")
    try:
        entry = _checked(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is no card of a folder: {error} Convert or train anew.") from error
    return Card(name=folder.name, weights=str(folder.absolute()), **entry)


def _checked(entry: Any) -> dict[str, Any]:
    """The entries of a folder's card that a reward is made of. Others do no harm, and may come with a newer version."""
    if not isinstance(entry, dict):
        raise ValueError(f"it must be a JSON object, not {entry!r}.")
    found: dict[str, Any] = {"commercial": "unclear", "args": {}, "sha256": {}} | entry
    for key, kind in FOLDER_KINDS.items():
        if not isinstance(found.get(key), kind):
            raise ValueError(f"{key} must be a {kind.__name__}, not {found.get(key)!r}.")
    names = (found["dimensions"], found["sha256"], found["sha256"].values())
    if not all(isinstance(name, str) for group in names for name in group):
        raise ValueError("dimensions and sha256 must hold strings.")
    if not re.fullmatch(r"rewards(\.\w+)+:\w+", found["reward"]):
        raise ValueError(f"it names {found['reward']!r}; only a class of the package rewards is loaded from a folder.")
    if outside := [file for file in found["sha256"] if Path(file).is_absolute() or ".." in Path(file).parts]:
        raise ValueError(f"it describes {outside[0]!r}, which is not in its folder.")
    return {key: found[key] for key in FOLDER_KINDS} | {"dimensions": tuple(found["dimensions"])}


def _card(name: str, entry: dict[str, Any]) -> Card:
    """A card of an entry of cards.yaml, lists and groups made what the fields are."""
    made: dict[str, Any] = entry | {"dimensions": tuple(entry["dimensions"])}
    made |= {role: Source(**entry[role]) for role in ("checkpoint", "clip", "tokenizer") if role in entry}
    if "range" in entry:
        low, high = entry["range"]
        made["range"] = (float(low), float(high))
    if "check" in entry:
        made["check"] = tuple(Check(**check) for check in entry["check"])
    return Card(name=name, **made)
