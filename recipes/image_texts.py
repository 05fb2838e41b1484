"""Which prompt belongs to which image: what stands beside it, one prompt for all, or a file."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from recipes.image_sources import Found, text_of

WAYS = (
    "Put a metadata.jsonl with file_name and text beside the images, give --prompt TEXT for all of them, or --prompts "
    "FILE (.txt with one line an image, or .jsonl with file_name and text)."
)


@dataclass(frozen=True)
class Captions:
    """Where prompts come from: what the user gives wins over what stands beside the images."""

    prompt: str | None = None
    file: Path | None = None

    def of(self, found: Sequence[Found]) -> list[str]:
        """The prompt of each image.

        Raises:
            ValueError: An image without one, or a file that does not fit the images.
        """
        if self.prompt is not None:
            return [self.prompt] * len(found)
        texts = [one.text for one in found] if self.file is None else _from_file(self.file, found)
        missing = [one.name for one, text in zip(found, texts, strict=True) if text is None]
        if missing:
            more = f" and {len(missing) - 1:,} more of {len(found):,} images" if len(missing) > 1 else ""
            raise ValueError(f"{missing[0]}{more} came without a prompt. {WAYS}")
        return [text for text in texts if text is not None]


def _from_file(path: Path, found: Sequence[Found]) -> list[str | None]:
    if path.suffix not in (".txt", ".jsonl") or not path.is_file():
        raise ValueError(f"The prompt file {path} must be there, and end in .txt or .jsonl. {WAYS}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"The prompt file {path} is not text in UTF-8 ({error}). Convert it.") from error
    return _by_line(path, lines, found) if path.suffix == ".txt" else _by_name(path, lines, found)


def _by_line(path: Path, lines: Sequence[str], found: Sequence[Found]) -> list[str | None]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if len(lines) != len(found):
        raise ValueError(
            f"{path} has {len(lines):,} lines and there are {len(found):,} images ({found[0].name} is the first); line "
            "i is the prompt of image i. Add or remove lines, or name the images in a .jsonl file."
        )
    return [line.strip() for line in lines]


def _by_name(path: Path, lines: Sequence[str], found: Sequence[Found]) -> list[str | None]:
    """By the whole name, or by the file's own where that is given."""
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
        texts = {str(row["file_name"]): text_of(row) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} must have an object with "file_name" and "text" in each line ({error}). Mend it.'
        ) from error
    bare = Counter(PurePath(one.name).name for one in found if one.name not in texts)
    if unclear := [name for name in texts if bare[name] > 1]:
        raise ValueError(
            f"{path} names {unclear[0]}, and {bare[unclear[0]]} of the images are called so. Write their whole names, "
            f"such as {found[0].name}."
        )
    return [texts.get(one.name, texts.get(PurePath(one.name).name)) for one in found]
