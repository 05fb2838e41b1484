"""The one training loop: any module, any batches, any loss; generators and reward models train with it.

Batches and noise are functions of the step, so a run that was killed and is started again is the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from align.log import Log
from align.state import TrainState

Batch = TypeVar("Batch")

Batches = Callable[[int], Batch]
"""The batch of a step; the same step always gives the same batch."""

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
"""The loss of a module on a batch, as a scalar; all its randomness comes from the (CPU) generator."""


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of AdamW and of the loop, under the names of the diffusers training scripts."""

    max_train_steps: int
    learning_rate: float
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    checkpointing_steps: int = 500
    ema_decay: float = 0.0
    seed: int = 0


def train(
    module: nn.Module,
    batches: Batches[Batch],
    loss: Loss[Batch],
    settings: TrainSettings,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
) -> None:
    """Train the parameters of `module` that require gradients, in place, on from the newest checkpoint in `folder`.

    With `ema_decay` above zero the module ends with the exponential average of its weights, else with the last ones.

    Raises:
        ValueError: The loss is not finite; the last checkpoint is kept, and the message says where.
    """
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = _adamw(list(parameters.values()), settings)
    average = {name: value.detach().clone() for name, value in parameters.items()} if settings.ema_decay else {}
    state = TrainState(parameters, optimizer, average)
    start = state.load_latest(folder)
    learning_rate = _learning_rate(settings)
    prepared, prepared_optimizer = accelerator.prepare(module, optimizer)
    module.train()
    log.rewind("train", start)
    with log.progress(settings.max_train_steps, "train", initial=start) as progress:
        for step in range(start, settings.max_train_steps):
            rate = _set_learning_rate(optimizer, learning_rate(step))
            with accelerator.autocast():
                value = loss(prepared, batches(step), step_generator(settings.seed, step))
            _check_finite(value, step, folder)
            norm = _update(accelerator, prepared_optimizer, list(parameters.values()), value, settings.max_grad_norm)
            _update_average(average, parameters, settings.ema_decay, step)
            log.metrics(step + 1, {"loss": value.item(), "grad_norm": norm.item(), "learning_rate": rate}, "train")
            progress.update()
            if (step + 1) % settings.checkpointing_steps == 0 or step + 1 == settings.max_train_steps:
                state.save(folder, step + 1)
    _load_average(parameters, average)
    module.eval()


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that belongs to one step of one run.

    Seed and step are hashed together, since torch's CPU generator reads no more than 32 bits of its seed.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


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


def _update(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    loss: Tensor,
    max_grad_norm: float,
) -> Tensor:
    """One optimizer step; the gradient norm before clipping."""
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(parameters, max_grad_norm)
    assert norm is not None
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _check_finite(loss: Tensor, step: int, folder: Path) -> None:
    if not torch.isfinite(loss):
        raise ValueError(
            f"The loss is {loss.item()} at step {step + 1}; it must be finite. The last good checkpoint "
            f"is kept in {folder}. Lower the learning rate (or train in float32) and run again."
        )


def _update_average(average: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """Exponential moving average with the usual warm-up: min(decay, (1 + step) / (10 + step))."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in average.items():
            value.lerp_(parameters[name].detach(), 1 - decay)


def _load_average(parameters: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
