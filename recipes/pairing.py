"""Which image of one folder is compared with which of another: by prompt, and then by the closest tie there is."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Entry:
    """One image, as far as pairing asks.

    Attributes:
        name: Its file, below the folder.
        text: Its prompt.
        sample_index: Which of the prompt's images it is, from 0; None of an image that align did not make.
        seed: The seed of its noise; None likewise.
    """

    name: str
    text: str
    sample_index: int | None = None
    seed: int | None = None


Key = Callable[[Entry], Hashable]

TIES: dict[str, Key] = {
    "seed": lambda entry: None if entry.seed is None else (entry.sample_index, entry.seed),
    "sample number": lambda entry: entry.sample_index,
    "file": lambda entry: str(PurePosixPath(entry.name).with_suffix("")),
    "file name": lambda entry: PurePosixPath(entry.name).stem,
}
"""What two images of a prompt can have in common, the closest tie first; the last resort is their order."""

ORDER = "order"


@dataclass(frozen=True)
class Pairing:
    """Images of two folders, matched.

    Attributes:
        tie: What the two images of a pair have in common besides the prompt: a key of `TIES`, or `ORDER`.
        pairs: Positions (in the first folder, in the second), in the order of the first.
        prompts: The prompts of the pairs, in their order.
        groups: For each pair, the position of its prompt in `prompts`.
        unpaired: Positions of the images of either folder that have no partner.
        uneven: How many of the prompts have more images in one folder than in the other.
        same_seeds: Whether both images of every pair were made from one seed; None where seeds are not known.
    """

    tie: str
    pairs: Sequence[tuple[int, int]]
    prompts: Sequence[str]
    groups: Sequence[int]
    unpaired: tuple[Sequence[int], Sequence[int]]
    uneven: int
    same_seeds: bool | None


def pair(first: Sequence[Entry], second: Sequence[Entry]) -> Pairing:
    """Match the images of two folders, within each prompt.

    The tie is the closest that holds for at least half of the pairs that the prompts allow: a few files that happen to
    be called alike decide nothing. A tie that does not tell the images of a prompt apart is none.

    Raises:
        ValueError: No prompt is in both folders.
    """
    possible = _match(_by_order(first), _by_order(second))
    if not possible:
        raise ValueError(_no_common_prompt(first, second))
    for tie, key in TIES.items():
        keys = [[(entry.text, key(entry)) for entry in entries] for entries in (first, second)]
        if all(_tells_apart(one) for one in keys):
            pairs = _match(*keys)
            if 2 * len(pairs) >= len(possible):
                return _pairing(tie, pairs, first, second)
    return _pairing(ORDER, possible, first, second)


def _by_order(entries: Sequence[Entry]) -> list[tuple[str, Hashable]]:
    """Each image by its prompt and its place among the prompt's images."""
    seen = Counter[str]()
    keys: list[tuple[str, Hashable]] = []
    for entry in entries:
        keys.append((entry.text, seen[entry.text]))
        seen[entry.text] += 1
    return keys


def _tells_apart(keys: Sequence[tuple[str, Hashable]]) -> bool:
    return len(set(keys)) == len(keys) and all(key is not None for _, key in keys)


def _match(first: Sequence[tuple[str, Hashable]], second: Sequence[tuple[str, Hashable]]) -> list[tuple[int, int]]:
    places = {key: place for place, key in enumerate(second)}
    return [(place, places[key]) for place, key in enumerate(first) if key in places]


def _pairing(tie: str, pairs: Sequence[tuple[int, int]], first: Sequence[Entry], second: Sequence[Entry]) -> Pairing:
    prompts = list(dict.fromkeys(first[one].text for one, _ in pairs))
    index = {prompt: place for place, prompt in enumerate(prompts)}
    counts = [Counter(entry.text for entry in entries) for entries in (first, second)]
    seeds = [(first[one].seed, second[other].seed) for one, other in pairs]
    return Pairing(
        tie=tie,
        pairs=pairs,
        prompts=prompts,
        groups=[index[first[one].text] for one, _ in pairs],
        unpaired=(_left(first, [one for one, _ in pairs]), _left(second, [other for _, other in pairs])),
        uneven=sum(counts[0][prompt] != counts[1][prompt] for prompt in prompts),
        same_seeds=None if any(None in both for both in seeds) else all(one == other for one, other in seeds),
    )


def _left(entries: Sequence[Entry], paired: Sequence[int]) -> list[int]:
    return sorted(set(range(len(entries))) - set(paired))


def _no_common_prompt(first: Sequence[Entry], second: Sequence[Entry]) -> str:
    prompts = [list(dict.fromkeys(entry.text for entry in entries)) for entries in (first, second)]
    said = [f"{len(one):,} prompts" + (f" (one is {one[0]!r})" if one else "") for one in prompts]
    return (
        f"The first folder has {said[0]}, the second {said[1]}, and none is in both; images are compared prompt by "
        "prompt. Give two folders with images of the same prompts."
    )
