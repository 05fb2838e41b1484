"""Pictures to score, and the command that scores them as it is typed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cli import main
from tests.recipes.own_red import REWARD, Said


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures of rising red with prompts beside them, three of each of two, and a reward of the user's own."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for index in range(6):
        pixels = np.zeros((8 + index, 10, 3), np.uint8)
        pixels[..., 0] = 20 * (index + 1)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{index}.png")
        rows.append({"file_name": f"{index}.png", "text": ("a red circle", "a <b>square</b>")[index % 2]})
    (tmp_path / "pictures/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_red.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def score(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Types the command; its exit code, output and errors."""

    def typed(
        *arguments: str, images: Sequence[str] = ("pictures",), rewards: Sequence[str] = ("own_red:Red",)
    ) -> Said:
        code = main(["score", *images, "--rewards", *rewards, "--device", "cpu", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return typed
