"""What is measured against people, as a user types it: which rewards can be, on which images, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cli import main
from rewards.rahf.network import SCORES
from tests.recipes.own_magenta import CRITIC, MAGENTA
from tests.recipes.own_red import REWARD


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures that two people spoke of, but for the first, of which one did; a reward and a critic of our own."""
    generator, lines = np.random.default_rng(0), list[str]()
    (tmp_path / "mine").mkdir()
    for number in range(6):
        pixels = generator.integers(0, 200, (12, 16, 3), np.uint8)
        pixels[4:7, 4:7] = MAGENTA
        Image.fromarray(pixels).save(tmp_path / f"mine/{number}.png")
        remarks = [
            {
                "scores": dict(zip(SCORES, generator.integers(1, 6, 4).tolist(), strict=True)),
                "implausible": [[5.5, 5.5]],
            }
            for _ in range(2 if number else 1)
        ]
        row = {"file_name": f"{number}.png", "text": f"a cat {number // 2}", "remarks": remarks}
        lines.append(json.dumps(row))
    (tmp_path / "mine/test.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "own_red.py").write_text(REWARD)
    (tmp_path / "own_pink.py").write_text(CRITIC.replace('("plausibility", ', '("pinkness", '))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _evaluate(*rewards: str) -> int:
    return main(["evaluate-reward", *rewards, "--data", "mine", "--resamples", "100", "--device", "cpu"])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("rewards", [("own_red:Red",), ("own_red:Red.blue", "own_red:Red")])
def test_a_reward_of_which_nothing_stands_for_a_score_is_refused(
    rewards: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _evaluate(*rewards) == 1
    error = capsys.readouterr().err
    assert "own_red:Red has the dimensions red, blue; people gave plausibility" in error
    assert "Name one dimension, such as own_red:Red.red:" in error and "judge by" not in error
    assert not Path("runs").exists()


def test_one_dimension_and_maps_alone_are_compared(place: Path) -> None:
    out = place / "runs/evaluate-reward"
    assert _evaluate("own_red:Red.blue") == 0
    page = (out / "report.html").read_text()
    assert "PLCC with people" in page and "image by image" in page
    assert _evaluate("own_pink:Magenta") == 0
    found = json.loads((out / "result.json").read_text())
    assert {row["target"] for row in found["rows"] if row["reward"] == "own_pink:Magenta"} == {
        "implausibility",
        "words",
    }
    page = (out / "report.html").read_text()
    assert "with people&#39;s implausibility" in page and "implausibility: predicted" in page
    assert "image by image" not in page


def test_the_split_that_was_judged_and_the_images_that_people_are_compared_on_are_told(place: Path) -> None:
    out = place / "runs/evaluate-reward"
    assert _evaluate("own_red:Red.red") == 0
    found = json.loads((out / "result.json").read_text())
    assert (found["data"], found["split"], found["images"]) == ("mine", "test", 6)
    assert {row["n"] for row in found["rows"] if row["reward"] == "one person"} == {5}
    for file in ("table.md", "report.html"):
        assert "(on 5 of 6 images, all with the same number of annotators)" in (out / file).read_text()
