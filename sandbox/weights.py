"""Where the models that ship with the sandbox lie."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
NAMES = ("clip", "sd", "hps", "hps2", "rahf")
