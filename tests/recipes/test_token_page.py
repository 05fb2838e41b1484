"""The results of a run in a page: between the markers, and nothing else changes."""

import json
from pathlib import Path

import pytest

from recipes.token_page import END, START, main

NUMBERS = {"n": 512, "base_mean": 0.5, "tuned_mean": 0.75, "difference": 0.25, "ci_low": -0.125, "ci_high": 0.5}
ROW = {"reward": "gold", "dimension": "overall", "win_rate": 0.625, **NUMBERS}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [
        {"arm": "tuned", "against": other, **ROW, "dimension": name}
        for other in ("base", "control")
        for name in ("overall", "alignment")
    ]
    points = [
        {"guidance_scale": scale, "arm": arm, "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 64}
        for arm in ("base", "tuned")
        for scale in (1.0, 2.0)
    ]
    (tmp_path / "run/evaluation").mkdir(parents=True)
    (tmp_path / "run/evaluation/result.json").write_text(json.dumps(lines))
    (tmp_path / "run/evaluation/guidance.json").write_text(json.dumps(points))
    return tmp_path / "run"


def test_the_headlines_rows_come_between_the_markers_and_again(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nstale\n{END}\nafter\n")
    assert main([str(run), str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{START}\ngold overall, 512 pairs:\n") and text.endswith(f"{END}\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| tuned,")]
    assert rows[0] == (
        "| tuned, away from the token | base model | 0.500 | 0.750 | +0.250 | \N{MINUS SIGN}0.125 to +0.500 | 62.5% |"
    )
    assert len(rows) == 2 and "stale" not in text
    assert main([str(run), str(page)]) == 0 and page.read_text() == text
    assert (tmp_path / "page-guidance.svg").read_text().count("<polyline") == 2


def test_a_page_without_markers_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="must hold the lines"):
        main([str(run), str(tmp_path / "page.md")])
