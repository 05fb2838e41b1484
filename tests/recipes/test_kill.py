"""A run that is killed with SIGKILL in every phase, and started again each time, ends with the bits of a whole one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PHASES: dict[str, Callable[[Path], bool]] = {
    "evaluate the base model": lambda folder: any(folder.glob("evaluation/base/samples/00000/*.png")),
    "generate": lambda folder: any(folder.glob("samples/00000/*.png")),
    "score": lambda folder: any(folder.glob("scores/.*/*.jsonl")),
    "select": lambda folder: any(folder.glob("scores/*.parquet")) and not any(folder.glob("scores/.*")),
    "train": lambda folder: (folder / "checkpoints" / "checkpoint-2").exists(),
    "validate": lambda folder: any(folder.glob("validation/step-000004/samples/00000/*.png")),
    "evaluate the tuned model": lambda folder: any(folder.glob("evaluation/tuned/samples/00000/*.png")),
}
"""What shows that a phase has begun."""

SETTINGS = {
    "samples_per_prompt": 4,
    "sampling.num_inference_steps": 2,
    "sampling.batch_size": 4,
    "select.per_prompt": 1,
    "train.max_train_steps": 6,
    "train.train_batch_size": 2,
    "train.checkpointing_steps": 2,
    "train.validation_steps": 4,
    "num_validation_prompts": 2,
    "evaluate.samples_per_prompt": 2,
    "evaluate.batch_size": 4,
    "lora.rank": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    shapes = ("circle", "square", "triangle", "star")
    for name, colour in (("train", "red"), ("validation", "blue")):
        lines = [f"a large {colour} {shape} on a grey background" for shape in shapes]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    config = "recipes/configs/filter_finetune/sandbox.yaml"
    options = [word for key, value in SETTINGS.items() for word in (f"--{key}", str(value))]
    prompts = [word for name in ("train", "validation") for word in (f"--{name}_prompts", str(folder / f"{name}.txt"))]
    return [sys.executable, "recipes/filter_finetune.py", "--config", config, *options, *prompts, "--output_dir"]


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ALIGN_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.log").open("ab") as output:
        return subprocess.Popen([*command, str(folder)], env=environment, stdout=output, stderr=output)


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Wait until a phase is reached, and kill; a process that ends before has missed it."""
    while not reached():
        assert process.poll() is None, "it ended before the phase was seen"
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_a_run_killed_once_in_each_phase_ends_with_the_same_bits(command: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(command, whole).wait() == 0
    for reached in PHASES.values():
        process = start(command, killed)
        kill_when(process, lambda reached=reached: reached(killed))
        assert not (killed / "report.html").exists()
    assert start(command, killed).wait() == 0
    first, second = (load_file(path / "lora" / "pytorch_lora_weights.safetensors") for path in (whole, killed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for file in ("evaluation/result.json", "scores/sandbox-hps.parquet"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
