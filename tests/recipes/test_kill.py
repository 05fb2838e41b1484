"""A run that is killed with SIGKILL in every phase, and started again each time, ends with the bits of a whole one."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.recipes.launching import kill_in_each, on_sandbox, start

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


def test_a_run_killed_once_in_each_phase_ends_with_the_same_bits(tmp_path: Path) -> None:
    words, whole, killed = on_sandbox("filter_finetune", SETTINGS, tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert start(words, whole).wait() == 0
    kill_in_each(PHASES, words, killed, killed / "report.html")
    first, second = (load_file(path / "lora" / "pytorch_lora_weights.safetensors") for path in (whole, killed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for file in ("evaluation/result.json", "scores/sandbox-hps.parquet"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
