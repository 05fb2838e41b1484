"""The results of runs in a page: between the markers, and nothing else changes."""

import json
from pathlib import Path

import pytest

from benchmarks.reward_token import write

NUMBERS = {"n": 512, "base_mean": 0.5, "tuned_mean": 0.75, "difference": 0.25, "ci_low": -0.125, "ci_high": 0.5}
ROW = {"reward": "gold", "dimension": "overall", "win_rate": 0.625, **NUMBERS}
PAGE = "".join(f"before\n<!-- {name}: begin -->\nstale\n<!-- {name}: end -->\n" for name in ("all", "one", "more"))
MARGIN = {"value": 0.2, "ci_low": 0.1, "ci_high": 0.3}
EFFECTS = {
    "title": "gold, asked for",
    "measures": ["plausibility", "alignment"],
    "treatments": ["Weird.", "Wrong."],
    "means": [[-0.5, 0.1], [0.2, -0.75]],
    "margins": [MARGIN, MARGIN],
}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("one", "more")}
    lines = [
        {"arm": "tuned", "against": other, "arm_title": "tuned so", "against_title": other, **ROW, "dimension": name}
        for other in ("base", "control")
        for name in ("overall", "alignment")
    ]
    points = [
        {"guidance_scale": scale, "arm": arm, "mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 64}
        for arm in ("base", "tuned")
        for scale in (1.0, 2.0)
    ]
    for run in found.values():
        (run / "evaluation").mkdir(parents=True)
        (run / "evaluation/result.json").write_text(json.dumps(lines))
        (run / "evaluation/guidance.json").write_text(json.dumps(points))
    (tmp_path / "more/evaluation/dimensions.json").write_text(json.dumps([EFFECTS]))
    return found


def test_results_come_between_the_markers_and_again(runs: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write(page, runs)
    text = page.read_text()
    assert "stale" not in text and text.count("before\n") == 3
    interval = "\N{MINUS SIGN}0.125 to +0.500"
    assert text.count(f"| tuned so | base | 0.500 | 0.750 | +0.250 | {interval} | 62.5% |") == 2
    assert f"| `one` | 512 | 0.500 | 0.750 | +0.250 | {interval} | +0.250 | {interval} |" in text
    assert "| alignment | +0.200 | **\N{MINUS SIGN}0.750** | +0.200 | +0.100 to +0.300 |" in text
    assert text.count("gold, asked for") == 1
    write(page, runs)
    assert page.read_text() == text
    assert (tmp_path / "page-guidance.svg").read_text().count("<polyline") == 2


def test_a_page_without_markers_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="must have one line <!-- all: begin -->"):
        write(tmp_path / "page.md", runs)
