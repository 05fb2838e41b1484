"""Prompt files, right and wrong."""

from pathlib import Path

import pytest

from recipes.models import resolve_model
from recipes.prompts import read_prompts
from sandbox.world import split_of


def test_lines_are_prompts_once_each(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  a cat \n\nzwei Hünde\na cat\n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "zwei Hünde"]


def test_jsonl_has_texts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "a cat", "id": 1}\n{"text": "a dog"}\n')
    assert read_prompts(path) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"none\.txt does not exist"),
        ("empty.txt", "\n \n", r"empty\.txt is empty; it must hold at least one"),
        ("x.csv", "a", r"must end in \.txt .* or \.jsonl"),
        ("x.jsonl", '{"text": "a"}\n{"prompt": "b"}', r'x\.jsonl, line 2: expected an object with "text"'),
        ("x.jsonl", '{"text": 3}', r'line 1: "text" must be a prompt, got 3'),
        ("x.txt", b"\xff\xfe", r"is not text in UTF-8"),
    ],
)
def test_a_wrong_file_is_a_clear_error(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_the_shipped_prompts_keep_to_their_splits() -> None:
    folder = Path(__file__).parents[2] / "sandbox" / "prompts"
    assert {split_of(text) for text in read_prompts(folder / "train.txt")} == {"train"}
    assert {split_of(text) for text in read_prompts(folder / "validation.txt")} == {"test"}


def test_an_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'sanbox' is neither a folder nor a repository id.*Did you mean sandbox\?"):
        resolve_model("sanbox")
    assert resolve_model(str(tmp_path)) == str(tmp_path) and resolve_model("owner/name") == "owner/name"
    assert Path(resolve_model("sandbox")).name == "sd"
