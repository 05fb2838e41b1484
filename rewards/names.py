"""What the name of a reward on the command line refers to. The forms of a name:

    sandbox-hps                     a card of cards.yaml
    my_reward:MyReward              a user's own class, importable or in my_reward.py of the current directory
    runs/my-hps                     a folder with an `align_reward.json`, as `align convert` and a training write it
    hf://OWNER/NAME                 such a folder in a repository of the Hugging Face Hub; OWNER/NAME does as well
    mps.aesthetics                  one dimension of any of them
    sandbox-hps=2 sandbox-clip=0.5  a weighted sum (a weight left out is 1)

Where a whole name exists, as a card or as a folder, it is not taken apart. Nothing here loads a network or torch.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rewards.cards import FOLDER_CARD, Card, load_cards, read_folder_card
from rewards.hub import hub_folder

HUB = "hf://"


@dataclass(frozen=True)
class Named:
    """What a name without a weight refers to.

    Attributes:
        name: Without the dimension.
        dimension: The chosen one.
        card: None for a user's own class.
        repository: The Hub's, OWNER/NAME, whose folder `card` describes.
    """

    name: str
    dimension: str | None = None
    card: Card | None = None
    repository: str = ""


def split_words(spec: str) -> list[str]:
    """The single names, each with or without a weight, of a name that may be a weighted sum."""
    return [spec.strip()] if _local_folder(spec.strip()) else spec.split()


def group_specs(specs: Sequence[str]) -> list[str]:
    """What follows `--rewards`, as names for `load_reward`: `a=1 b=0.5` is one reward, `a b` are two. Loads nothing.

    Raises:
        ValueError: Names with and without weights, or the same name twice.
    """
    weighted = [spec for spec in specs if len(split_words(spec)) == 1 and has_weight(spec)]
    if weighted and len(weighted) < len(specs):
        plain = next(spec for spec in specs if spec not in weighted)
        raise ValueError(f"{weighted[0]} has a weight and {plain} has none; give every reward a weight, or none.")
    names = [" ".join(specs)] if weighted else list(specs)
    if len(set(names)) < len(names):
        raise ValueError(f"A reward is named twice in {' '.join(names)}; name each once.")
    return names


def has_weight(word: str) -> bool:
    """Whether a single name has a weight; the name of a folder that exists is no weight."""
    return "=" in word and not _local_folder(word)


def split_weight(word: str) -> tuple[str, float]:
    """`NAME=WEIGHT` as both; without a weight it is 1.

    Raises:
        ValueError: A weight that is not a number.
    """
    if not has_weight(word):
        return word, 1.0
    name, _, weight = word.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"{word!r} must be NAME=WEIGHT with a number, such as sandbox-hps=0.5.") from None


def find_cards(spec: str) -> list[tuple[str, Card]]:
    """The cards a name refers to, to show their licences before use. A user's own class has no card.

    Loads no weights; of a repository of the Hub it fetches the card.

    Raises:
        ValueError: An unknown name, with the nearest known ones; a folder without a card.
    """
    found = [find(word.rpartition("=")[0] if has_weight(word) else word) for word in split_words(spec)]
    return [(named.name, named.card) for named in found if named.card]


def find(word: str) -> Named:
    """What a name without a weight refers to.

    Raises:
        ValueError: An unknown name, with the nearest known ones; a folder without a card.
    """
    if word in load_cards():
        return Named(word, card=load_cards()[word])
    if match := re.fullmatch(r"([\w.]+:\w+)(?:\.(\w+))?", word):
        return Named(match[1], match[2])
    name, _, dimension = word.rpartition(".")
    if name in load_cards():
        return Named(name, dimension, load_cards()[name])
    if folder := _local_folder(word):
        return Named(folder[0], folder[1], read_folder_card(Path(folder[0])))
    if repository := _repository(word):
        return _find_in_hub(word, repository)
    raise ValueError(_unknown(word))


def slug(spec: str) -> str:
    """A file name for a reward, different for different names: `sandbox.gold:Gold` -> `sandbox.gold~Gold`.

    Of a folder, only the last part of its path can be read in it; eight digits of a digest stand for the rest, and for
    the folder's card, so that scores of other weights in the same place are other scores.
    """
    return "+".join(_slug(word) for word in split_words(spec))


def _slug(word: str) -> str:
    name, weight = (word.rpartition("=")[0], word.rpartition("=")[2]) if has_weight(word) else (word, "")
    ending = f"@{weight}" if weight else ""
    if folder := _local_folder(name):
        path = Path(folder[0]).resolve()
        card = path / FOLDER_CARD
        return _digested(str(path), card.read_bytes() if card.is_file() else b"", folder[1]) + ending
    if repository := _repository(name):
        return _digested(repository, b"", None) + ending
    return name.translate(str.maketrans(":/", "~-")) + ending


def _digested(place: str, content: bytes, dimension: str | None) -> str:
    digest = hashlib.sha256(place.encode() + b"\0" + content).hexdigest()[:8]
    readable = re.sub(r"[^\w.-]", "_", Path(place).name)
    return f"{readable}-{digest}" + (f".{dimension}" if dimension else "")


def _local_folder(word: str) -> tuple[str, str | None] | None:
    """The folder that a name is, and the dimension after it; None where there is no such folder, or a card wins."""
    match = re.fullmatch(r"(.+)\.(\w+)", word)
    if word in load_cards() or (match and match[1] in load_cards()):
        return None
    if word and Path(word).is_dir():
        return word, None
    return (match[1], match[2]) if match and Path(match[1]).is_dir() else None


def _repository(word: str) -> str | None:
    """The OWNER/NAME that a name may be; what starts like a path that exists here is a path."""
    bare = word.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", bare):
        return None
    return bare if word.startswith(HUB) or not Path(bare.partition("/")[0]).exists() else None


def _find_in_hub(word: str, repository: str) -> Named:
    """A repository's card. Repositories may have dots in their names, so the whole name is tried first."""
    name, _, dimension = repository.rpartition(".")
    try:
        return Named(word, None, read_folder_card(hub_folder(repository, whole=False)), repository)
    except ValueError:
        if "/" not in name:
            raise
    card = read_folder_card(hub_folder(name, whole=False))
    return Named(word.removesuffix(f".{dimension}"), dimension, card, name)


def _unknown(word: str) -> str:
    if "/" in word:
        return f"There is no folder {word}. Give one with {FOLDER_CARD}, or OWNER/NAME of the Hugging Face Hub."
    near = get_close_matches(word.rpartition(".")[0] or word, load_cards(), n=3, cutoff=0.4) or sorted(load_cards())
    return f"Reward {word!r} is unknown. Nearest names: {', '.join(near)}. Your own class is named as my_file:MyReward."
