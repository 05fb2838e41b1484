"""What is looked at while a critic learns: how far it agrees with people. The best weights are kept."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from align.log import Log
from align.report.overlay import overlay
from align.state import atomic_path, read_json, write_json
from align.train import Validation
from recipes.learner import Learner
from rewards.agreement import fit_map, judge, selection
from rewards.datasets.rich_feedback import RichFeedback
from rewards.rahf.network import HEATMAPS

BEST = "best"
PANELS = 8
"""Images of the dev split that are shown, with what people marked and what the critic does."""


def watch(
    learner: Learner,
    rows: Sequence[RichFeedback],
    folder: Path,
    steps: int,
    batch_size: int,
    log: Log,
    accelerator: Accelerator,
) -> Validation | None:
    """Judge the critic by `rows` every `steps` steps, and keep the best weights in `folder/best`; None without rows."""

    @torch.no_grad()
    def look(step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        if accelerator.is_main_process:
            found = selection(judge(learner.critic, rows, batch_size, accelerator.device), rows)
            _keep_best(learner, folder, step, found["selection"])
            log.images(step, _panels(learner, rows[:: max(1, len(rows) // PANELS)][:PANELS], accelerator), "validation")
        accelerator.wait_for_everyone()
        return found

    return Validation(steps, look) if rows else None


def best_step(folder: Path) -> dict[str, int | float] | None:
    """The step whose weights are in `folder/best`, and how good they are; None where nothing was looked at."""
    path = folder / BEST / "selection.json"
    return read_json(path) if path.is_file() else None


def _keep_best(learner: Learner, folder: Path, step: int, value: float) -> None:
    """Of equals the first."""
    best = best_step(folder)
    if best is None or value > best["selection"]:
        with atomic_path(folder / BEST) as temporary:
            learner.write(temporary)
            write_json(temporary / "selection.json", {"step": step, "selection": value})


def _panels(
    learner: Learner, rows: Sequence[RichFeedback], accelerator: Accelerator
) -> dict[str, tuple[Float[Tensor, "3 h w"], str]]:
    """For each image and map: the image, what people marked, what the critic does."""
    images = [row.image() for row in rows]
    said = learner.critic.critique([image.to(accelerator.device) for image in images], [row.prompt for row in rows])
    panels: dict[str, tuple[Float[Tensor, "3 h w"], str]] = {}
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        for name in HEATMAPS:
            heats = row.heatmaps[name](), said.heatmaps[name][number].cpu()
            drawn = [image, *(overlay(image, fit_map(heat, image.shape[1:])) for heat in heats)]
            panels[f"{name}_{number:02d}"] = torch.cat(drawn, dim=2), row.prompt
    return panels
