"""What the sandbox's base model was trained on last, as an imagefolder: `sandbox:mix`, made when first asked for.

Rendered scenes, three in four with a flaw that the caption does not tell; other pictures than those of the training.
"""

import json
import sys
from pathlib import Path

from filelock import FileLock
from PIL import Image

from align.state import atomic_path
from sandbox.build.pictures import draw_pictures

NAME, FOLDER = "sandbox:mix", Path("runs/sandbox-mix")
COUNT, FLAWED, SEED = 1024, 0.75, 23
"""How many pictures, the share of flawed ones (as in the last phase of `sandbox.build.denoiser`), and the seed."""


def resolve_ordinary(folder: Path) -> Path:
    """The folder; in place of `sandbox:mix` the one where that is made, by one of several processes."""
    if str(folder) != NAME:
        return folder
    if not FOLDER.exists():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(FOLDER.with_name(f".{FOLDER.name}.lock")):
            if not FOLDER.exists():
                _make(FOLDER)
    return FOLDER


def _make(folder: Path) -> None:
    print(f"{folder} is made: {COUNT:,} pictures as the sandbox's model was trained on", file=sys.stderr)
    pictures = draw_pictures(COUNT, "train", FLAWED, SEED)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        rows = [{"file_name": f"{number:05d}.png", "text": text} for number, text in enumerate(pictures.captions)]
        for row, pixels in zip(rows, pictures.pixels, strict=True):
            Image.fromarray(pixels).save(temporary / row["file_name"])
        (temporary / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
