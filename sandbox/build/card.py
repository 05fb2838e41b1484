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
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def _phase(metrics: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    width = max(1, len(rows) // CURVE_POINTS)
    chunks = [rows[start : start + width] for start in range(0, len(rows) - width + 1, width)]
    curve = [[chunk[-1]["step"], round(sum(row["loss"] for row in chunk) / width, 5)] for chunk in chunks]
    return {"steps": rows[-1]["step"], "loss": curve}
