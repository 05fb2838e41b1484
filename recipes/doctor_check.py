"""What `align doctor` expects of a reward's scores of pictures, and what it finds."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.device import pick_device, set_threads
from rewards.base import Reward
from rewards.cards import Card, Check
from rewards.load import load_card


def check_scores(card: Card, pictures: Sequence[Path], device: str) -> list[tuple[bool, str]]:
    """Load a reward and do the checks of its card, see `judge`.

    Arguments:
        card: Whose weights are at `card.path`.
        pictures: A file for each check of the card.
        device: See `align.device.pick_device`.

    Raises:
        ValueError: Weights that are damaged or of another reward.
    """
    set_threads()
    chosen = pick_device(device)
    reward = load_card(card.name, card, card.path, chosen)
    results: list[tuple[bool, str]] = []
    for check, path in zip(card.check, pictures, strict=True):
        picture = _read(path).to(chosen)
        other = _scores(reward, picture, check.wrong) if check.wrong else None
        results.append(judge(check, card, _scores(reward, picture, check.prompt), other))
    return results


def judge(check: Check, card: Card, own: Sequence[float], other: Sequence[float] | None) -> tuple[bool, str]:
    """Whether a check holds, and in words what was found.

    Arguments:
        check: What to expect.
        card: Whose `range` the scores must be near: inside it, or not farther outside than it is wide.
        own: The scores of the picture with its prompt, one a dimension.
        other: Those with the wrong prompt, where the check has one.
    """
    column = card.dimensions.index(check.dimension) if check.dimension else 0
    what, found = check.file, own[column]
    if not all(map(math.isfinite, own)):
        return False, f"{what}: scores must be finite, found {list(own)}"
    if check.score is not None:
        expected = f"expected {check.score:.4f} within {check.tolerance:g} ({check.source})"
        return abs(found - check.score) <= check.tolerance, f"{what}: {expected}, found {found:.4f}"
    low, high = card.range or (-math.inf, math.inf)
    if not all(2 * low - high <= value <= 2 * high - low for value in own):
        return False, f"{what}: expected scores near the published {low:g} to {high:g}, found {list(own)}"
    if other is None:
        return True, f"{what}: found {found:.4f}, near the published {low:g} to {high:g}"
    return found > other[column], f"{what}: expected more than {other[column]:.4f} of a wrong prompt, found {found:.4f}"


def _read(path: Path) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255


def _scores(reward: Reward, picture: Float[Tensor, "3 h w"], prompt: str) -> list[float]:
    with torch.no_grad():
        return reward([picture], [prompt])[0].tolist()
