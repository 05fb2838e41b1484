"""The card beside shipped weights: which commit and steps made them, how training went, what quality it reached."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from align.state import write_json

CURVE_POINTS = 60


def write_card(weights: Path, training: Mapping[str, Path], quality: Mapping[str, float]) -> None:
    """Write `build.json` into a weights folder; `training` maps each phase to its folder with `metrics.jsonl`."""
    phases = {name: _phase(folder / "metrics.jsonl") for name, folder in training.items()}
    rounded = {name: round(value, 4) for name, value in quality.items()}
    write_json(weights / "build.json", {"commit": _commit(), "quality": rounded, "training": phases})


def _commit() -> str:
    """The commit of the code, marked where a file of it is changed; the weights, which are being made, do not count."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/sandbox/weights", ":!/rewards/cards.yaml"
    )
    return (commit or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    place = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=False).stdout.strip()


def _phase(metrics: Path) -> dict[str, object]:
    rows = [row for line in metrics.read_text().splitlines() if "loss" in (row := json.loads(line))]
    width = max(1, len(rows) // CURVE_POINTS)
    chunks = [rows[start : start + width] for start in range(0, len(rows) - width + 1, width)]
    curve = [[chunk[-1]["step"], round(sum(row["loss"] for row in chunk) / width, 5)] for chunk in chunks]
    return {"steps": rows[-1]["step"], "loss": curve}
