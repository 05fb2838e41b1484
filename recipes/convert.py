"""Turn the checkpoint of a published reward into a folder that `--rewards` reads, once.

    align convert HPS_v2.1_compressed.pt --as hps-v2.1

Layout and sizes are read from the tensors (`--dry-run` prints them), and nothing is left over in silence. The folder
appears when it is whole; its last file is `align_reward.json`, which says what the folder is and what it was made from.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from align.state import atomic_path
from recipes.configs.convert import ConvertConfig
from recipes.configuration import launch
from recipes.reward_names import announce
from recipes.settings import as_yaml
from rewards.cards import FOLDER_CARD, Card, load_cards
from rewards.convert.checkpoint import read_checkpoint
from rewards.convert.layouts import Files, Parts
from rewards.convert.published import CLIPS, Published, find_published, recognise
from rewards.hub import sha256
from rewards.weights import TOKENIZER, write_network


def main(config: ConvertConfig, *, dry_run: bool = False) -> None:
    """Read, recognise, convert; write, and print what was written."""
    published = find_published(config.reward)
    card = load_cards()[config.reward]
    announce([config.reward])
    out = config.out or card.path
    _check(config, published, out)
    _verify(config.checkpoint, card)
    origin = _identify(config.checkpoint) | ({"clip": _identify(config.clip)} if config.clip else {})
    files = convert(config, published)
    if dry_run:
        print(f"{as_yaml(config)}plan: {', '.join([*files.tensors, *files.configs, FOLDER_CARD])}, into {out}")
        return
    with atomic_path(out) as temporary:
        write_network(temporary, *files)
        if config.tokenizer:
            shutil.copyfile(config.tokenizer, temporary / TOKENIZER)
        digests = {name: sha256(temporary / name) for name in files.tensors}
        marker = json.dumps(describe(card) | {"sha256": digests, "converted_from": origin}, indent=2)
        (temporary / FOLDER_CARD).write_text(f"{marker}\n", encoding="utf-8")
    for path in sorted(out.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256(path)}")


def convert(config: ConvertConfig, published: Published) -> Files:
    """Our files out of the checkpoint's; prints the layout and the sizes that were recognised."""
    tensors = read_checkpoint(config.checkpoint, config.allow_pickle)
    layout = recognise(tensors, published.layouts)
    clip = read_checkpoint(config.clip, config.allow_pickle) if config.clip else None
    if clip is not None:
        layout += f", upon {recognise(clip, CLIPS)}"
    files = published.convert(tensors, Parts(clip, config.tokenizer, config.vision_heads, config.text_heads))
    numbers = sum(tensor.numel() for state in files.tensors.values() for tensor in state.values())
    print(f"recognised: {layout}; {numbers:,} numbers")
    for name, content in files.configs.items():
        print(f"{name}: {json.dumps(content)}")
    return files


def describe(card: Card) -> dict[str, Any]:
    """What a folder says of itself, as its card does."""
    return {
        "reward": card.reward,
        "args": dict(card.args),
        "dimensions": list(card.dimensions),
        "licence": card.licence,
        "paper": card.paper,
        "commercial": card.commercial,
    }


def _verify(path: Path, card: Card) -> None:
    """A file of the published name must be the published file, where its digest is known; others are the user's own."""
    source = card.checkpoint
    if source and source.sha256 and path.name == source.file and sha256(path) != source.sha256:
        raise ValueError(
            f"{path} is not the file that {source.place} publishes (its SHA-256 differs). Get it again, or rename it "
            "where it is another on purpose."
        )


def _identify(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256(path)}


def _check(config: ConvertConfig, published: Published, out: Path) -> None:
    """All that can be wrong before anything large is read."""
    for path in (config.checkpoint, config.clip, config.tokenizer):
        if path and not path.is_file():
            raise ValueError(f"{path} is not a file. Give one that its authors publish.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already, and is not overwritten. Move it away, or give another --out.")
    for option, given, source in (
        ("--clip", config.clip, published.clip),
        ("--tokenizer", config.tokenizer, published.tokenizer),
    ):
        if source and given is None:
            raise ValueError(f"{config.reward} needs {option} as well: give {source}.")
        if given and not source:
            raise ValueError(f"{config.reward} is made without {option}; leave it out.")


if __name__ == "__main__":
    launch(ConvertConfig, main)
