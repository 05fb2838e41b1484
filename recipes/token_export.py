"""The images that a reward-token run is trained on, as an imagefolder with the words before their captions."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from align.state import atomic_path
from recipes.configs.reward_token import RewardTokenConfig
from recipes.images import Item
from recipes.token_choice import Choice, Group, Scores


def captions(config: RewardTokenConfig, group: Group, items: Sequence[Item], seed: int) -> list[str]:
    """What the images of a group are trained with: its words before their prompts, or, of some, alone."""
    texts = [group.words + items[place].text for place in group.places]
    if group.words:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
        for place in order[: round(config.proportion_identifier_alone * len(texts))]:
            texts[place] = group.words
    return texts


def export(config: RewardTokenConfig, choice: Choice, items: Sequence[Item], scores: Scores, out: Path) -> None:
    """Copy what is trained on to an imagefolder, atomically, with its captions; one that is there already is kept.

    Training reads it from there, whatever it comes from, and knows the files by the time of their writing.
    """
    plain = sum(not group.words for group in choice.groups)
    chosen = [
        (place, {"text": text, "words": group.words, "score": scores[group.reward][place].item(), **share})
        for number, group in enumerate(choice.groups)
        for place, text, share in zip(
            group.places, captions(config, group, items, config.seed + number - plain), _shares(group), strict=True
        )
    ]
    rows = [
        {"file_name": f"{number:06d}.{_kind(items[place])}", "prompt": items[place].text, **row}
        for number, (place, row) in enumerate(chosen)
    ]
    lines, metadata = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), out / "metadata.jsonl"
    if metadata.exists() and metadata.read_text(encoding="utf-8") == lines:
        return
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for (place, _), row in zip(chosen, rows, strict=True):
            (temporary / str(row["file_name"])).write_bytes(items[place].found.read())
        (temporary / metadata.name).write_text(lines, encoding="utf-8")


def _shares(group: Group) -> list[dict[str, float]]:
    return [{"share": share} for share in group.shares] or [{} for _ in group.places]


def _kind(item: Item) -> str:
    """The ending of a file with this image."""
    try:
        with Image.open(io.BytesIO(item.found.read())) as image:
            return str(image.format).lower()
    except OSError as error:
        raise ValueError(f"{item.name} is missing or no image ({error}). Restore it, or leave it out.") from error
