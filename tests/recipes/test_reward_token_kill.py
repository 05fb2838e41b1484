"""A reward-token run that is killed with SIGKILL in every phase ends with the bits of one that was not."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.recipes.launching import kill_in_each, losses_of, on_sandbox, start


def _drawn(place: str) -> Callable[[Path], bool]:
    return lambda folder: any((folder / place / "samples").glob("00000/*.png"))


PHASES: dict[str, Callable[[Path], bool]] = {
    "draw": _drawn("."),
    "score": lambda folder: any(folder.glob("scores/.*/*.jsonl")),
    "select": lambda folder: any(folder.glob(".selected.tmp/*")) or (folder / "selected").exists(),
    "learn the embedding": lambda folder: (folder / "embedding/checkpoints/checkpoint-2").exists(),
    "train the LoRA": lambda folder: (folder / "checkpoints/checkpoint-2").exists(),
    "train the control": lambda folder: (folder / "control/checkpoints/checkpoint-2").exists(),
    "evaluate the base model": _drawn("evaluation/base-string"),
    "evaluate the tuned model": _drawn("evaluation/tuned-asked"),
    "evaluate the control": _drawn("evaluation/control"),
    "guidance of the tuned model": _drawn("evaluation/guidance-3/tuned"),
}
"""What shows that a phase has begun."""

SETTINGS = {
    "source.samples_per_prompt": 4,
    "source.sampling.num_inference_steps": 2,
    "source.sampling.batch_size": 4,
    "select.scale": 500,
    "regularization.train_data_dir": "null",
    "regularization.samples_per_prompt": 1,
    "regularization.ratio": 0.5,
    "embedding.max_train_steps": 3,
    "train.max_train_steps": 4,
    "train.train_batch_size": 2,
    "train.checkpointing_steps": 2,
    "train.validation_steps": 4,
    "train.lr_warmup_steps": 1,
    "num_validation_prompts": 1,
    "holdout_rewards": "sandbox.gold:Gold",
    "sampling.num_inference_steps": 2,
    "sampling.batch_size": 4,
    "evaluate.samples_per_prompt": 2,
    "evaluate.batch_size": 4,
    "evaluate.guidance_scales": [1, 3],
    "evaluate.guidance_samples_per_prompt": 1,
    "lora.rank": 2,
    "device": "cpu",
}

TENSORS = (
    "lora/pytorch_lora_weights.safetensors",
    "lora/learned_embeds.safetensors",
    "control/lora/pytorch_lora_weights.safetensors",
)
FILES = ("scores/sandbox-hps.parquet", "selected/metadata.jsonl", "evaluation/result.json", "evaluation/guidance.json")


def test_a_run_killed_once_in_each_phase_ends_with_the_same_bits(tmp_path: Path) -> None:
    words, whole, killed = on_sandbox("reward_token", SETTINGS, tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert start(words, whole).wait() == 0
    kill_in_each(PHASES, words, killed, killed / "report.html")
    for file in TENSORS:
        first, second = (load_file(folder / file) for folder in (whole, killed))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first), file
    for file in FILES:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert losses_of(killed) == losses_of(whole) and [*losses_of(whole)] == [*range(1, 3 + 4 + 4 + 1)]
