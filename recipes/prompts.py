"""Files of prompts."""

import json
from pathlib import Path

from sandbox.weights import WEIGHTS

SHIPPED = {f"sandbox:{name}": WEIGHTS.with_name("prompts") / f"{name}.txt" for name in ("train", "validation")}
"""Files that ship, under names that mean the same in every folder."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt file, one a line, or of a .jsonl file with a `text` in each line; repeated ones once.

    `sandbox:train` and `sandbox:validation` are the files that ship.

    Raises:
        ValueError: No such file, another ending, a line that is not what it must be, or no prompt at all.
    """
    path = SHIPPED.get(str(path), path)
    if not path.is_file():
        raise ValueError(
            f"The prompt file {path} does not exist. Give a .txt file with one prompt a line, or the name of one that "
            f"ships: {', '.join(SHIPPED)}."
        )
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"The prompt file {path} must end in .txt (one prompt a line) or .jsonl (a `text` in each line)."
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"The prompt file {path} is not text in UTF-8 ({error}). Convert it.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    prompts = [line if path.suffix == ".txt" else _text(path, number, line) for number, line in numbered]
    if not prompts:
        raise ValueError(f"The prompt file {path} is empty; it must hold at least one prompt.")
    return list(dict.fromkeys(prompts))


def _text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}, line {number}: expected an object with "text", such as {{"text": "a cat"}}.'
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{path}, line {number}: "text" must be a prompt, got {text!r}.')
    return text.strip()
