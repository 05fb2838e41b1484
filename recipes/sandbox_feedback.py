"""Rich feedback of the sandbox, made where it is first asked for: `sandbox`, or `sandbox-` and train, dev or test.

Pictures of the sandbox's Stable Diffusion, without guidance so that they differ more, and what three simulated people
said of each, as annotations that `rewards.datasets.annotations` reads. No caption is in two splits.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from align.device import set_threads
from align.families.load import load_model
from align.generate import Alone, generate
from align.log import Log
from align.model import Sampling
from align.samples import SampleRow, SampleStore
from align.state import atomic_path
from sandbox.measure import measure
from sandbox.rich_feedback import SCORES, Remarks, remarks
from sandbox.weights import WEIGHTS
from sandbox.world import Split, sample_captions

FOLDER = Path("runs/sandbox-feedback")
SAMPLING = Sampling(num_inference_steps=12, guidance_scale=1.0)
SIZES: dict[str, tuple[Split, int, int, int]] = {
    "train": ("train", 500, 8, 15),
    "dev": ("dev", 40, 8, 17),
    "test": ("test", 300, 4, 19),
}
"""Split of the captions, how many, pictures of each, and the seed. The shipped critic learned from other pictures."""


def resolve_data(name: str) -> tuple[Path, str | None]:
    """The folder of a data set, and its split where the name has one; the sandbox's is made if it is not there.

    Raises:
        ValueError: An unknown split of the sandbox.
    """
    if name != "sandbox" and not name.startswith("sandbox-"):
        return Path(name), None
    split = name.removeprefix("sandbox").removeprefix("-") or None
    if split is not None and split not in SIZES:
        raise ValueError(f"{name!r} is no data of the sandbox; say sandbox, or sandbox-{', sandbox-'.join(SIZES)}.")
    for each in [split] if split else SIZES:
        make(FOLDER, each, *SIZES[each])
    return FOLDER, split


def make(folder: Path, split: str, captions: Split, count: int, n: int, seed: int) -> None:
    """Write `folder/SPLIT.jsonl`, and the pictures that it speaks of, unless it is there; a killed call goes on.

    Of several processes one does it, and the others wait until it has.

    Arguments:
        folder: Made if it is not there.
        split: What the file is called.
        captions: The split of the sandbox's captions that they come from.
        count: How many captions.
        n: Pictures of each.
        seed: Of captions, pictures and people.
    """
    path = folder / f"{split}.jsonl"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{split}.lock"):  # not a barrier of accelerate's, which would end by its timeout
        if not path.exists():
            print(f"{path} is made: {count * n:,} pictures, and what people say of them", file=sys.stderr)
            texts = sample_captions(np.random.default_rng(seed), captions, count)
            _annotate(path, _draw(folder, split, texts, n, seed), seed)


def _annotate(path: Path, store: SampleStore, seed: int) -> None:
    rows = store.rows()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(rows), 256):
            for line in _lines(path.parent, store, rows[start : start + 256], start, seed):
                file.write(line + "\n")


def _draw(folder: Path, split: str, texts: Sequence[str], n: int, seed: int) -> SampleStore:
    set_threads()
    model, log = load_model(str(WEIGHTS / "sd"), torch.device("cpu")), Log(folder / split)
    return generate(model, texts, n, folder / split / "samples", seed, 64, SAMPLING, log, Alone())


def _lines(folder: Path, store: SampleStore, rows: Sequence[SampleRow], first: int, seed: int) -> list[str]:
    """The annotations of some pictures, the first of which is number `first`."""
    images = store.load(rows).permute(0, 2, 3, 1).double().numpy()
    return [
        json.dumps(
            {
                "file_name": row.path.relative_to(folder).as_posix(),
                "text": row.text,
                "remarks": [_said(one) for one in remarks(measure(image, row.text), (seed, first + number))],
            }
        )
        for number, (row, image) in enumerate(zip(rows, images, strict=True))
    ]


def _said(one: Remarks) -> dict[str, object]:
    return {
        "scores": dict(zip(SCORES, one.scores, strict=True)),
        "implausible": one.implausible.round(2).tolist(),
        "misaligned": one.misaligned.round(2).tolist(),
        "misaligned_words": [place for place, clicked in enumerate(one.words) if clicked],
    }
