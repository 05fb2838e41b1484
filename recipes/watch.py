"""What is looked at while a model trains: the same prompts with the same seeds, as pictures and as scores."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from align.samples import SampleStore
from align.state import read_json
from align.train import Validation
from recipes.judge import Judge


def watch(
    judge: Judge, prompts: Sequence[str], folder: Path, seed: int, steps: int, steps_before: int
) -> Validation | None:
    """Draw one image of each prompt every `steps` steps into `folder/step-STEP`; None where there are no prompts.

    The trackers show them at the step counted from the first round on, as the curves are (`steps_before` came before).
    """

    def look(step: int) -> dict[str, float]:
        place = step_folder(folder, step)
        if judge.accelerator.is_main_process:
            _forget_other_weights(place, judge.model.fingerprint)
        judge.accelerator.wait_for_everyone()
        seen = judge(prompts, list(judge.rewards), 1, place, seed)
        rows = seen.store.rows()
        pictures = enumerate(zip(rows, seen.store.load(rows), strict=True))
        named = {f"prompt_{index:02d}": (image, row.text) for index, (row, image) in pictures}
        judge.log.images(steps_before + step, named, "validation")
        return {
            f"{name}.{dimension}": mean
            for name, scores in seen.scores.items()
            for dimension, mean in zip(judge.rewards[name].dimensions, scores.mean(0).tolist(), strict=True)
        }

    return Validation(steps, look) if prompts else None


def step_folder(folder: Path, step: int) -> Path:
    """Where the images of a step are."""
    return folder / f"step-{step:06d}"


def seen_steps(folder: Path) -> list[tuple[int, SampleStore]]:
    """The steps that were looked at, in their order, with their images."""
    return [
        (int(path.name.removeprefix("step-")), SampleStore(path / "samples")) for path in sorted(folder.glob("step-*"))
    ]


def _forget_other_weights(place: Path, fingerprint: str) -> None:
    """A training that is done again from an earlier checkpoint on another machine comes to other weights."""
    record = place / "samples" / "generation.json"
    if place.exists() and not (record.exists() and read_json(record)["model"] == fingerprint):
        shutil.rmtree(place)  # without a record it is what a kill left of such a removal
