"""How long `align` takes to answer `--help` and a typo in a YAML file, beside a Python that does nothing.

python -m benchmarks.cli
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 7
ALIGN = [sys.executable, "-m", "recipes.cli"]
LIMITS_S = {"align --help": 0.5, "a YAML typo": 1.0}


def main() -> None:
    """Print median wall times and their ratios to the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        typo = Path(folder) / "typo.yaml"
        typo.write_text("train: {learnin_rate: 1e-4}\n", encoding="utf-8")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "align --help": [*ALIGN, "--help"],
            "a YAML typo": [*ALIGN, "filter-finetune", "--config", str(typo)],
        }
        seconds = {name: median_seconds(command) for name, command in commands.items()}
    baseline = seconds["python -c pass"]
    for name, taken in seconds.items():
        limit = f"  (limit {LIMITS_S[name]} s)" if name in LIMITS_S else ""
        print(f"{name:16} {taken:6.3f} s  {taken / baseline:5.1f} x{limit}")


def median_seconds(command: list[str]) -> float:
    """The median wall time of a command, after one run that warms the disk's cache."""
    times: list[float] = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
