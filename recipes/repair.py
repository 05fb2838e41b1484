"""Repair pictures: find the flaw, mask it, repaint it, keep the best (after RichHF-18K, arXiv 2312.10240, section 5).

    align repair --image broken.png --prompt "a red circle left of a blue star"

critique -> heatmap -> mask -> candidates -> the best by the critic, or the picture as it was -> again, until nothing
glows. Into `repaired/`: the pictures, a strip of each (before, heat, mask, after), all numbers, a page. A killed call
is continued by the same command; pictures are never changed in place.

Departures from the paper:
1. It repaints once, by Muse; here candidates compete, and one that the critic does not find better is not taken.
2. Any critic with a heatmap and any model that `TextToImage.inpaint` knows do the work.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.device import pick_device, pick_dtype, set_threads
from align.families.load import load_model
from align.log import Log
from recipes.configs.repair import RepairConfig
from recipes.configuration import launch
from recipes.image_texts import Captions
from recipes.models import resolve_model
from recipes.picture_file import PictureFile
from recipes.repair_inputs import Task, find_tasks, read_mask
from recipes.repair_look import Looker, by_pixels
from recipes.repair_output import (
    PREVIEW,
    STRIP,
    as_table,
    check_place,
    details,
    done,
    read_records,
    write_repair,
    write_summary,
    write_views,
)
from recipes.repair_rounds import Repairer
from recipes.repair_state import Repair
from recipes.reward_names import announce
from recipes.settings import as_yaml
from rewards.image_file import read_image
from rewards.load import load_reward

ELSEWHERE = {
    **dict.fromkeys(("image", "prompt", "prompts", "out", "mask", "model", "lora", "report_to", "device"), True),
    "sampling": {"batch_size"},
}
"""Settings that do not change what comes of a picture (up to rounding), or are in its digest already."""


@dataclass(frozen=True)
class Opened:
    """A picture that was read, and its repair."""

    task: Task
    digest: str
    file: PictureFile
    repair: Repair


@dataclass
class Told:
    """What is known of the pictures so far: their records, and why others could not be read."""

    records: list[dict[str, Any]]
    problems: dict[str, str]


def main(config: RepairConfig, *, dry_run: bool = False) -> None:
    """Repair, and tell; in a dry run only look, and show what would be repainted."""
    path = resolve_model(config.model)
    tasks = find_tasks(config.image, Captions(config.prompt, config.prompts), config.mask, config.out)
    announce([config.critic])
    set_threads()
    device = pick_device(config.device)
    own_masks = config.mask is not None and not config.heat_in_mask
    looker = Looker(load_reward(config.critic, device), config, device, own_masks)
    if dry_run:
        print(as_yaml(config), end="")
        preview(config, tasks, looker)
        return
    check_place(config.out, tasks, read_records(config.out))
    model = load_model(path, device, pick_dtype(device), config.lora)
    if cut := model.count_truncated([task.item.text for task in tasks]):
        print(f"{cut:,} of {len(tasks):,} prompts are longer than the model reads; their ends are not seen.")
    told = run(config, tasks, Repairer(model, looker, config))
    if not told.records:
        raise ValueError(f"None of the {len(tasks):,} pictures could be repaired; they are named above.")
    print(as_table(told.records, config.objective))
    print(f"The pictures: {config.out / 'images'}; the page: {config.out / 'report.html'}")


def run(config: RepairConfig, tasks: Sequence[Task], repairer: Repairer) -> Told:
    """Repair all that is not repaired yet, some pictures at a time, and write what is told of all."""
    settings = as_yaml(config)
    trackers = sorted(set(config.report_to) - {"none"})
    decides = f"{config.model_dump(mode='json', exclude=ELSEWHERE)} {repairer.model.fingerprint}"
    told = Told([], {})
    with Log(config.out, trackers, config.out.name, config.model_dump(mode="json")) as log:
        todo = left(config, tasks, decides, told)
        with log.progress(len(tasks), "repair", len(told.records)) as progress:
            size = config.sampling.batch_size
            for group in by_pixels(opened(config, todo, told), lambda one: one.file.pixels, size):
                told.records += repaired(config, group, repairer)
                if trackers:
                    show(config, group, log, len(told.records))
                progress.update(len(group))
    if told.records:  # a page of no repair would be taken for somebody else's
        write_summary(config.out, [*read_records(config.out).values()], told.problems, config.objective, settings)
    return told


def left(config: RepairConfig, tasks: Sequence[Task], decides: str, told: Told) -> list[tuple[Task, str]]:
    """What is not repaired yet, with its digest; what is goes to the records, what cannot be read to the problems."""
    records, todo = read_records(config.out), list[tuple[Task, str]]()
    for task in tasks:
        try:
            digest = task.digest(decides)
        except OSError as error:
            tell(told, task, error)
            continue
        record = records.get(str(details(Path(), task)))
        if record is not None and done(config.out, record, digest):
            told.records.append(record)
        else:
            todo.append((task, digest))
    return todo


def tell(told: Told, task: Task, error: Exception) -> None:
    """Note a picture that cannot be read, and say so."""
    told.problems[task.item.name] = str(error)
    print(f"{task.item.name} is left out: {error}", file=sys.stderr)


def opened(config: RepairConfig, todo: Sequence[tuple[Task, str]], told: Told) -> Iterator[Opened]:
    """The pictures, read one after the other; one that cannot be read is told, and the rest goes on."""
    for task, digest in todo:
        try:
            file = PictureFile.read(task.item.found.read())
            height, width = file.pixels.shape[1:]
            mask = read_mask(task.mask, height, width, config.resize_mask) if task.mask else None
        except (ValueError, OSError) as error:
            tell(told, task, error)
            continue
        yield Opened(task, digest, file, Repair(file.pixels, task.item.text, mask, file.seen))


def repaired(config: RepairConfig, group: Sequence[Opened], repairer: Repairer) -> list[dict[str, Any]]:
    """Repair some pictures together, and write what came of each."""
    start = time.monotonic()
    repairer([one.repair for one in group])
    seconds = (time.monotonic() - start) / len(group)
    for one in group:
        for note in one.file.notes if one.repair.is_changed else ():
            print(f"{one.task.item.name}: {note}", file=sys.stderr)
    return [
        write_repair(config.out, one.task, one.file, one.repair, one.digest, seconds, config.keep_format)
        for one in group
    ]


def show(config: RepairConfig, group: Sequence[Opened], log: Log, step: int) -> None:
    """Send the strips to the trackers."""
    strips = {
        str(one.task.name): (read_image(details(config.out, one.task) / STRIP), one.task.item.text) for one in group
    }
    log.images(step, strips, "repair")


def preview(config: RepairConfig, tasks: Sequence[Task], looker: Looker) -> None:
    """Look at all pictures, write what the critic sees of each, and print what would be repainted."""
    told = Told([], {})
    for group in by_pixels(opened(config, [(task, "") for task in tasks], told), lambda one: one.file.pixels):
        looker.look([one.repair for one in group])
        for one in group:
            place = config.out / PREVIEW / one.task.name
            write_views(place, one.file, one.repair)
            score, regions = one.repair.after[config.objective], len(one.repair.regions)
            print(f"{one.task.item.name}: {config.objective} {score:.3f}, to repaint: {regions} ({place / STRIP})")
    if len(told.problems) == len(tasks):
        raise ValueError(f"None of the {len(tasks):,} pictures can be read; they are named above.")


if __name__ == "__main__":
    launch(RepairConfig, main)
