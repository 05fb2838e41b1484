"""The one training loop: any module, any batches, any loss; generators and reward models train with it.

Batches and noise are functions of their number, so a run that was killed and is started again is the same run, and the
same batches are seen however they are shared out over processes and accumulation steps.
"""

import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from align.log import Log
from align.state import TrainState, list_checkpoints, read_json

Batch = TypeVar("Batch")

Batches = Callable[[int], Batch]
"""A batch by its number; the same number always gives the same batch.

Step s takes the batches from s * k on, where k = gradient_accumulation_steps * processes: each process takes its share.
"""

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""The loss of a module on a batch, as a scalar; all its randomness comes from the (CPU) generator of the batch."""

DISTRIBUTED = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Accelerate's ways of running that the loop knows: whole copies of the module, whose gradients are averaged."""


SKIPPED_STEPS = 50
"""So many overflows in a row halve fp16's loss scale to nothing."""


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of AdamW and of the loop, under the names of the diffusers training scripts.

    The global batch is the batch times `gradient_accumulation_steps` times the number of processes. Of the checkpoints
    the newest `checkpoints_total_limit` are kept, or all. `ema_decay` 0 means no average of the weights. The log counts
    on from `steps_before`, the steps of earlier trainings that this one goes on with.
    """

    max_train_steps: int
    learning_rate: float
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = None
    ema_decay: float = 0.0
    steps_before: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Validation:
    """What is looked at before the first step, every `steps` steps and after the last.

    `look` is given the step and returns numbers for the log. It may be called twice for one step, after a resume.
    """

    steps: int
    look: Callable[[int], Mapping[str, float]]

    def is_due(self, step: int, max_train_steps: int) -> bool:
        """Whether it is time to look after so many steps."""
        return step % self.steps == 0 or step == max_train_steps


def train(
    module: nn.Module,
    batches: Batches[Batch],
    loss: Loss[Batch],
    settings: TrainSettings,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
    validation: Validation | None = None,
) -> None:
    """Train the parameters of `module` that require gradients, in place, on from the newest whole checkpoint.

    With `ema_decay` above zero the module ends with the exponential average of its weights, else with the last ones;
    `validation` sees the average too.

    Raises:
        ValueError: The loss is not finite (the last checkpoint is kept, and the message says where), or the processes
            share parts of the module (FSDP, DeepSpeed), which this loop does not know.
    """
    check_launch(accelerator)
    module.to(accelerator.device)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = _adamw(list(parameters.values()), settings)
    _renew_scaler(accelerator)
    prepared = accelerator.prepare(optimizer)
    average = {name: value.detach().clone() for name, value in parameters.items()} if settings.ema_decay else {}
    state = TrainState(parameters, optimizer, average, accelerator.scaler, accelerator.num_processes)
    start, before = _resume(state, folder, accelerator), settings.steps_before
    _rewind(log, before + start, validation)
    learning_rate, skipped = _learning_rate(settings), 0

    def look(step: int) -> None:
        if validation and validation.is_due(step, settings.max_train_steps):
            module.eval()
            with _swapped(parameters, average):
                log.metrics(before + step, validation.look(step), "validation")
            module.train()

    module.train()
    look(start)
    with log.progress(settings.max_train_steps, "train", initial=start) as progress:
        for step in range(start, settings.max_train_steps):
            rate = _set_learning_rate(optimizer, learning_rate(step))
            value = _backward(module, batches, loss, settings, step, accelerator)
            norm = _clip(accelerator, list(parameters.values()), settings.max_grad_norm)
            _check_finite(value, norm if accelerator.scaler is None else 0.0, step, folder)
            prepared.step()
            prepared.zero_grad()
            skipped = skipped + 1 if prepared.step_was_skipped else 0
            _check_progress(skipped, folder)
            _update_average(average, parameters, settings.ema_decay, step)
            row = _finite({"loss": value, "grad_norm": norm, "learning_rate": rate})
            log.metrics(before + step + 1, row, "train")
            progress.update()
            if (step + 1) % settings.checkpointing_steps == 0 or step + 1 == settings.max_train_steps:
                _save(state, folder, step + 1, settings.checkpoints_total_limit, accelerator)
            look(step + 1)
    _load_average(parameters, average)
    module.eval()
    accelerator.free_memory()  # or it would keep the optimizer, and the next training's gradients would pass through it


def check_launch(accelerator: Accelerator) -> None:
    """Raise a ValueError where the processes, or the precision, are of a kind that the loop does not know."""
    kind = str(accelerator.distributed_type.value)
    if kind not in DISTRIBUTED:
        raise ValueError(
            f"The processes were launched as {kind}; this loop averages gradients of whole copies of the module. "
            "Launch with --multi_gpu (in the launcher's configuration: distributed_type MULTI_GPU)."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(
            f"fp16 needs a scaled loss, and there is none on {accelerator.device.type}. Use mixed_precision no or bf16."
        )


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that belongs to one step (or batch, or sample) of one run.

    Seed and step are hashed together, since torch's CPU generator reads no more than 32 bits of its seed.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def _renew_scaler(accelerator: Accelerator) -> None:
    """A loss scale of its own for each training, or a resumed one would start with another than one in one go."""
    if accelerator.scaler is not None:
        accelerator.scaler = type(accelerator.scaler)()


def _resume(state: TrainState, folder: Path, accelerator: Accelerator) -> int:
    """Load the newest whole checkpoint, say which were passed over, and forget those that came after it."""
    accelerator.wait_for_everyone()  # no process may look while another still writes
    start, notes = state.load_latest(folder)
    _check_same_start(start, folder, accelerator)
    if accelerator.is_main_process:
        for note in notes:
            print(
                f"{note} It is removed. Training {f'goes on from step {start}' if start else 'starts anew'}.",
                file=sys.stderr,
            )
        state.forget_after(folder, start)
    accelerator.wait_for_everyone()
    return start


def _rewind(log: Log, step: int, validation: Validation | None) -> None:
    """Forget what was logged after a step; not what an earlier training looked at last, where this one has no look."""
    log.rewind("train", step)
    if validation:
        # the validation of the step itself may have come after the checkpoint, or be cut off: it is looked at again
        log.rewind("validation", step - 1)


def _check_same_start(start: int, folder: Path, accelerator: Accelerator) -> None:
    """All processes go on from one checkpoint, which as many of them wrote: the batches follow from their number."""
    starts = accelerator.gather(torch.tensor([start], device=accelerator.device))
    assert isinstance(starts, Tensor)
    if starts.unique().numel() > 1:
        raise ValueError(
            f"The processes read the checkpoints in {folder} differently: steps {starts.tolist()}. Run again."
        )
    written_by = read_json(folder / f"checkpoint-{start}" / "state.json").get("processes", 1) if start else None
    if written_by not in (None, accelerator.num_processes):
        raise ValueError(
            f"{folder} holds the training of {written_by} processes, and now they are {accelerator.num_processes}: the "
            f"batches would differ. Launch with --num_processes {written_by}, or start anew in another folder."
        )


def _adamw(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )


def _learning_rate(settings: TrainSettings) -> Callable[[int], float]:
    """The learning rate of each step, read from the schedule of diffusers; a pure function of the step."""
    probe = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=settings.learning_rate)
    schedule = get_scheduler(
        settings.lr_scheduler,
        probe,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    factor = schedule.lr_lambdas[0]
    return lambda step: settings.learning_rate * float(factor(step))


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _backward(
    module: nn.Module,
    batches: Batches[Batch],
    loss: Loss[Batch],
    settings: TrainSettings,
    step: int,
    accelerator: Accelerator,
) -> float:
    """Add up the gradients of this process's batches of a step; the mean loss of all processes."""
    turns, processes = settings.gradient_accumulation_steps, accelerator.num_processes
    values: list[Tensor] = []
    for turn in range(turns):
        number = (step * turns + turn) * processes + accelerator.process_index
        with accelerator.autocast():
            value = loss(module, batches(number), step_generator(settings.seed, number)) / turns
        accelerator.backward(value)
        values.append(value.detach())
    total = accelerator.reduce(torch.stack(values).sum(), "mean")
    assert isinstance(total, Tensor)
    return total.item()


def _clip(accelerator: Accelerator, parameters: list[nn.Parameter], max_grad_norm: float) -> float:
    """Average the gradients over the processes and scale them down to `max_grad_norm`; their norm before that."""
    _average_gradients(accelerator, [parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = accelerator.clip_grad_norm_(parameters, max_grad_norm)
    assert norm is not None
    return norm.item()


def _average_gradients(accelerator: Accelerator, gradients: Sequence[Tensor]) -> None:
    """The mean over the processes, in one message.

    Not DistributedDataParallel: its hooks see a call of the module itself only, and a loss may reach the module by
    another way (a text-to-image model calls its own denoiser).
    """
    if accelerator.num_processes > 1:
        mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        assert isinstance(mean, Tensor)
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _check_finite(loss: float, grad_norm: float, step: int, folder: Path) -> None:
    """Stop before the weights take a step that ruins them, and any checkpoint after it."""
    for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            raise ValueError(
                f"The {name} is {value} at step {step + 1}; it must be finite. {_last_good(folder)} "
                "Lower the learning rate (or train in float32) and run again, in another folder."
            )


def _last_good(folder: Path) -> str:
    checkpoints = list_checkpoints(folder)
    return f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "No checkpoint was made before it."


def _check_progress(skipped: int, folder: Path) -> None:
    """fp16 skips a step whose gradient overflows and lowers its scale; where that never helps, nothing is learned."""
    if skipped >= SKIPPED_STEPS:
        raise ValueError(
            f"The gradient was not finite for {skipped} steps in a row, at ever lower loss scales. "
            f"{_last_good(folder)} Train with mixed_precision bf16 or no, in another folder."
        )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without the norm of a gradient that overflowed in fp16: that step is skipped, and the loss scale lowered."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _save(state: TrainState, folder: Path, step: int, total_limit: int | None, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        state.save(folder, step, total_limit)
    accelerator.wait_for_everyone()


def _update_average(average: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """Exponential moving average with the usual warm-up: min(decay, (1 + step) / (10 + step))."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in average.items():
            value.lerp_(parameters[name].detach(), 1 - decay)


@contextmanager
def _swapped(parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> Generator[None, None, None]:
    """The average in the module's place, where there is one."""
    kept = {name: parameters[name].detach().clone() for name in average}
    _load_average(parameters, average)
    try:
        yield
    finally:
        _load_average(parameters, kept)


def _load_average(parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
