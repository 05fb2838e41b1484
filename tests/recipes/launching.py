"""Recipes started in earnest, as scripts on the sandbox with its preset: in processes that are killed, or several."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LAUNCH = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def options(settings: Mapping[str, object]) -> list[str]:
    """Settings as they are typed."""
    many = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
    return [word for key, values in many.items() for word in (f"--{key}", *map(str, values))]


def on_sandbox(recipe: str, settings: Mapping[str, object], folder: Path) -> list[str]:
    """The words of a recipe's command but for `--output_dir`: its preset, settings, and prompts written to `folder`."""
    shapes = ("circle", "square", "triangle", "star")
    prompts = {f"{name}_prompts": folder / f"{name}.txt" for name in ("train", "validation")}
    for path, colour in zip(prompts.values(), ("red", "blue"), strict=True):
        path.write_text("".join(f"a large {colour} {shape} on a grey background\n" for shape in shapes))
    preset = ["--config", f"recipes/configs/{recipe}/sandbox.yaml"]
    return [f"recipes/{recipe}.py", *preset, *options(settings), *options(prompts)]


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Python with these words and an output folder; what it says is added to a file beside the folder."""
    environment = os.environ | {"ALIGN_NUM_THREADS": "1"}
    command = [sys.executable, *words, "--output_dir", str(folder)]
    with (folder.parent / f"{folder.name}.log").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Wait until a phase is reached, and kill; a process that ends before has missed it."""
    while not reached():
        assert process.poll() is None, "it ended before the phase was seen"
        time.sleep(0.002)
    process.kill()
    process.wait()


def kill_in_each(phases: Mapping[str, Callable[[Path], bool]], words: Sequence[str], folder: Path, last: Path) -> None:
    """Start, kill in a phase, and start again for the next; at last to the end, where `last` is written."""
    for reached in phases.values():
        kill_when(start(words, folder), lambda reached=reached: reached(folder))
        assert not last.exists()
    assert start(words, folder).wait() == 0


def run_in(processes: int, words: Sequence[str]) -> None:
    """Run Python with these words to its end, in so many processes, which speak gloo."""
    environment = os.environ | {"ALIGN_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), *LAUNCH]
    command = [sys.executable, *(several if processes > 1 else []), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def processes_of(folder: Path) -> int:
    """How many processes a run's own record tells of."""
    return json.loads((folder / "environment.json").read_text())["processes"]


def losses_of(folder: Path) -> dict[int, float]:
    """The loss of each step of a run's record, which must have it once."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if row["phase"] == "train"]
    assert len(dict(losses)) == len(losses), "a step is there twice"
    return dict(losses)
