"""The loop learns, is AdamW with a schedule and clipping, and continues to the same bits."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.log import Log
from align.state import list_checkpoints
from align.train import TrainSettings, Validation, check_launch, step_generator, train

SETTINGS = TrainSettings(max_train_steps=12, learning_rate=0.1, lr_scheduler="cosine", lr_warmup_steps=3, seed=5)


def batch(step: int) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def loss(module: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
    noise = 0.01 * torch.randn(inputs.shape, generator=generator)
    return (module(inputs + noise) - inputs.sum(1, keepdim=True)).square().mean()


def module_of(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 1)


def run(folder: Path, settings: TrainSettings, batches: Callable[[int], Tensor] = batch) -> nn.Linear:
    module = module_of(0)
    with Log(folder) as log:
        train(module, batches, loss, settings, folder / "checkpoints", log, Accelerator(cpu=True))
    return module


def by_hand(settings: TrainSettings) -> nn.Linear:
    """The same training written out, with torch alone."""
    module = module_of(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate)
    for step in range(settings.max_train_steps):
        warm, steps = settings.lr_warmup_steps, settings.max_train_steps
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (step / warm if step < warm else cosine)
        optimizer.zero_grad()
        loss(module, batch(step), step_generator(settings.seed, step)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
        optimizer.step()
    return module


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_loop_is_adamw_with_schedule_and_clipping(tmp_path: Path) -> None:
    assert same(run(tmp_path, SETTINGS), by_hand(SETTINGS))


def test_clipping_changes_the_result(tmp_path: Path) -> None:
    loose = replace(SETTINGS, max_grad_norm=1e9)
    assert not same(run(tmp_path / "a", SETTINGS), run(tmp_path / "b", loose))


def test_training_learns(tmp_path: Path) -> None:
    module = run(tmp_path, replace(SETTINGS, max_train_steps=200))
    torch.testing.assert_close(module.weight, torch.ones(1, 4), atol=0.05, rtol=0)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stopped_at", [1, 4, 5, 11])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, ema_decay: float, stopped_at: int
) -> None:
    settings = replace(SETTINGS, checkpointing_steps=4, ema_decay=ema_decay)
    whole = run(tmp_path / "whole", settings)

    def stopping(step: int) -> Tensor:
        if step == stopped_at:
            raise InterruptedError
        return batch(step)

    with pytest.raises(InterruptedError):
        run(tmp_path / "stopped", settings, stopping)
    assert same(run(tmp_path / "stopped", settings), whole)
    steps = [[row["step"] for row in records(tmp_path / name)] for name in ("whole", "stopped")]
    assert steps[0] == steps[1] == list(range(1, 13))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    def never(step: int) -> Tensor:
        raise AssertionError(step)

    assert same(run(tmp_path, SETTINGS), run(tmp_path, SETTINGS, never))


def test_the_average_follows_its_formula(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema_decay=0.5)
    trace: list[Tensor] = []

    def recording(step: int) -> Tensor:
        trace.append(module.weight.detach().clone())
        return batch(step)

    module = module_of(0)
    with Log(tmp_path) as log:
        train(module, recording, loss, settings, tmp_path / "c", log, Accelerator(cpu=True))
    final = by_hand(settings).weight.detach()
    average = trace[0]
    for step, weight in enumerate([*trace[1:], final]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(module.weight.detach(), average)


def test_only_parameters_that_require_gradients_move(tmp_path: Path) -> None:
    module = module_of(0)
    module.bias.requires_grad_(False)
    bias = module.bias.clone()
    with Log(tmp_path) as log:
        train(module, batch, loss, SETTINGS, tmp_path / "c", log, Accelerator(cpu=True))
    assert torch.equal(module.bias, bias) and not torch.equal(module.weight, module_of(0).weight)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpointing_steps=2)

    def poisoned(step: int) -> Tensor:
        return batch(step) * (float("nan") if step == 5 else 1.0)

    with pytest.raises(ValueError, match=r"(?s)loss is nan at step 6.*last good checkpoint is .*checkpoint-4\."):
        run(tmp_path, settings, poisoned)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_ruined(tmp_path: Path) -> None:
    module = module_of(0)

    def overflowing(module: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Finite itself, with an infinite slope."""
        return (module(inputs) * 0).abs().sqrt().sum() + loss(module, inputs, generator)

    with (
        Log(tmp_path) as log,
        pytest.raises(ValueError, match=r"gradient's norm is nan at step 1.*No checkpoint was made before it"),
    ):
        train(module, batch, overflowing, SETTINGS, tmp_path / "c", log, Accelerator(cpu=True))
    assert same(module, module_of(0))


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    def noiseless(module: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    def run_with(turns: int, folder: Path) -> nn.Linear:
        module, size = module_of(0), 12 // turns

        def part(number: int) -> Tensor:
            stream = torch.cat([batch(2 * (number * size // 12)), batch(2 * (number * size // 12) + 1)])[:12]
            return stream[number * size % 12 :][:size]

        settings = replace(SETTINGS, gradient_accumulation_steps=turns)
        with Log(folder) as log:
            train(module, part, noiseless, settings, folder / "c", log, Accelerator(cpu=True))
        return module

    whole, parts = run_with(1, tmp_path / "1"), run_with(3, tmp_path / "3")
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-5, atol=1e-6)
    losses = [[row["loss"] for row in records(tmp_path / name)] for name in ("1", "3")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_contract_of_checkpoints_of_the_diffusers_scripts(tmp_path: Path) -> None:
    """Two kept of those of every second step: after six steps 4 and 6, and after two more 6 and 8."""
    for steps, kept in ((6, ["checkpoint-4", "checkpoint-6"]), (8, ["checkpoint-6", "checkpoint-8"])):
        run(tmp_path, replace(SETTINGS, max_train_steps=steps, checkpointing_steps=2, checkpoints_total_limit=2))
        assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == kept


@pytest.mark.parametrize("newest", [8, 12])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    tmp_path: Path, newest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, checkpointing_steps=4)
    whole = run(tmp_path / "whole", settings)
    run(tmp_path / "damaged", replace(settings, max_train_steps=newest))
    for path in list_checkpoints(tmp_path / "damaged" / "checkpoints"):
        if path.name != "checkpoint-4":
            (path / "optimizer.safetensors").write_bytes(b"")
    # the schedule of the shorter run differs, so only its damage is used here
    shutil.rmtree(tmp_path / "damaged" / "checkpoints" / "checkpoint-4")
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-4", tmp_path / "damaged/checkpoints/checkpoint-4")
    assert same(run(tmp_path / "damaged", settings), whole)
    told = capsys.readouterr().err
    assert f"checkpoint-{newest} is damaged" in told and told.rstrip().endswith("Training goes on from step 4.")
    assert [row["step"] for row in records(tmp_path / "damaged")] == list(range(1, 13))


def watched(folder: Path, settings: TrainSettings, steps: int, stop_at: int = -1) -> list[tuple[int, float]]:
    """The steps that were looked at, with the first weight seen then."""
    module, seen = module_of(0), list[tuple[int, float]]()

    def look(step: int) -> dict[str, float]:
        if step == stop_at:
            raise InterruptedError
        assert not module.training
        seen.append((step, module.weight[0, 0].item()))
        return {"weight": seen[-1][1]}

    with Log(folder) as log:
        train(module, batch, loss, settings, folder / "c", log, Accelerator(cpu=True), Validation(steps, look))
    return seen


def test_validation_looks_before_the_first_step_every_n_and_after_the_last(tmp_path: Path) -> None:
    seen = watched(tmp_path, SETTINGS, steps=5)
    assert [step for step, _ in seen] == [0, 5, 10, 12]
    assert seen[0][1] == module_of(0).weight[0, 0].item()
    assert seen[-1][1] == run(tmp_path / "bare", SETTINGS).weight[0, 0].item()  # and changes nothing


def test_validation_sees_the_average_of_the_weights_and_leaves_the_training_alone(tmp_path: Path) -> None:
    settings = replace(SETTINGS, ema_decay=0.9)
    seen = watched(tmp_path / "watched", settings, steps=5)
    result = run(tmp_path / "bare", settings)
    assert seen[-1][1] == result.weight[0, 0].item()


@pytest.mark.parametrize("stop_at", [0, 4, 8, 12])
def test_a_run_stopped_while_looking_looks_again(tmp_path: Path, stop_at: int) -> None:
    settings = replace(SETTINGS, checkpointing_steps=4)
    whole = watched(tmp_path / "whole", settings, 4)
    with pytest.raises(InterruptedError):
        watched(tmp_path / "stopped", settings, 4, stop_at)
    again = watched(tmp_path / "stopped", settings, 4)
    assert again == [pair for pair in whole if pair[0] >= stop_at]
    rows = [(row["step"], row["weight"]) for row in records(tmp_path / "stopped") if row["phase"] == "validation"]
    assert rows == whole


def test_the_log_counts_on_from_the_steps_before(tmp_path: Path) -> None:
    run(tmp_path, SETTINGS)
    shutil.rmtree(tmp_path / "checkpoints")
    run(tmp_path, replace(SETTINGS, steps_before=12))
    assert [row["step"] for row in records(tmp_path)] == list(range(1, 25))


def test_damaged_checkpoints_do_not_count_as_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a limit of one, the damaged checkpoint of a later step would push out each one that is made before it."""
    settings = replace(SETTINGS, checkpointing_steps=4, checkpoints_total_limit=1)
    run(tmp_path, settings)
    (tmp_path / "checkpoints" / "checkpoint-12" / "optimizer.safetensors").write_bytes(b"")

    def stopping(step: int) -> Tensor:
        if step == 6:
            raise InterruptedError
        return batch(step)

    with pytest.raises(InterruptedError):
        run(tmp_path, settings, stopping)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["checkpoint-4"]
    assert "Training starts anew." in capsys.readouterr().err


def test_a_training_of_other_processes_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, replace(SETTINGS, checkpointing_steps=4))
    state = tmp_path / "checkpoints" / "checkpoint-12" / "state.json"
    state.write_text(state.read_text().replace('"processes": 1', '"processes": 4'))
    with pytest.raises(ValueError, match="holds the training of 4 processes.*Launch with --num_processes 4"):
        run(tmp_path, SETTINGS)


def test_a_parameter_without_a_gradient_does_not_spoil_the_checkpoint(tmp_path: Path) -> None:
    class WithIdle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 1)
            self.idle = nn.Parameter(torch.ones(2))

    for steps in (4, 8):
        module = WithIdle()
        with Log(tmp_path) as log:
            settings = replace(SETTINGS, max_train_steps=steps, lr_scheduler="constant", checkpointing_steps=4)
            train(module, batch, loss, settings, tmp_path / "c", log, Accelerator(cpu=True))
    assert [row["step"] for row in records(tmp_path)] == list(range(1, 9))


def test_fp16_without_a_scaled_loss_is_refused(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"  # pyright: ignore[reportPrivateUsage]
    try:
        with pytest.raises(ValueError, match="fp16 needs a scaled loss, and there is none on cpu"):
            check_launch(accelerator)
    finally:
        accelerator.state._mixed_precision = "no"  # pyright: ignore[reportPrivateUsage]
