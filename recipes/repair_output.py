"""What a repair leaves on disk: the picture, a strip to look at, the masks, and all numbers."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from align.masks import union
from align.report.overlay import overlay
from align.report.repair import RepairedPicture, RepairReport, write_repair_report
from align.state import atomic_path, read_json, write_json
from recipes.picture_file import PictureFile
from recipes.repair_inputs import Task
from recipes.repair_state import Attempt, Repair
from rewards.image_file import read_image

IMAGES, DETAILS, PREVIEW = "images", "details", "preview"
RECORD, STRIP, MASK, HEATMAP = "repair.json", "strip.png", "mask.png", "heatmap.png"
SUMMARY, REPORT = "summary.json", "report.html"
SIDE = 256
"""A strip shows pictures with this longer side in pixels, at least if they are smaller, at most twice that."""
GAP = 4
NO_FLAW, KEPT, REPAIRED = "no flaw found", "kept as it was: no candidate is better", "repaired"


def write_repair(
    out: Path, task: Task, file: PictureFile, repair: Repair, digest: str, seconds: float, keep_format: bool
) -> dict[str, Any]:
    """Write everything about a picture, what tells that it is ours first, the record last; and return the record."""
    place = details(out, task)
    write_views(place, file, repair)
    picture = file.write(out / IMAGES / task.name.parent, task.name.name, repair.pixels, keep_format)
    record: dict[str, Any] = {
        "image": task.item.name,
        "text": repair.prompt,
        "picture": str(picture.relative_to(out)),
        "details": str(place.relative_to(out)),
        "verdict": verdict(repair),
        "before": repair.before,
        "after": repair.after,
        "misaligned": list(repair.missed),
        "attempts": [as_json(attempt) for attempt in repair.attempts],
        "notes": list(file.notes) if repair.is_changed else [],
        "seconds": round(seconds, 3),
        "digest": digest,
    }
    write_json(place / RECORD, record)
    return record


def write_views(place: Path, file: PictureFile, repair: Repair) -> None:
    """The strip, the heatmap where there is one, and the mask of all that was (or is to be) repainted."""
    mask = union(repair.tried or repair.regions, *file.pixels.shape[1:])
    _save(strip(file, repair, mask), place / STRIP)
    _save(mask.float().expand(3, -1, -1), place / MASK)
    if repair.heat is not None:
        _save(repair.heat.expand(3, -1, -1), place / HEATMAP)


def details(out: Path, task: Task) -> Path:
    """The folder of what is known about a picture."""
    return out / DETAILS / task.name


def read_records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of all repairs in a folder, by their folders below it."""
    return {str(path.parent.relative_to(out)): read_json(path) for path in sorted((out / DETAILS).rglob(RECORD))}


def check_place(out: Path, tasks: Sequence[Task], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse, with a ValueError, to write over inputs, files that no repair wrote, and repairs of other pictures."""
    taken = [name for name in (SUMMARY, REPORT) if (out / name).exists() and not records]
    if taken:
        raise ValueError(f"{out} has {', '.join(taken)}, which no repair wrote. Give another --out.")
    owners = {record["picture"]: place for place, record in records.items()}
    inputs = {Path(task.item.name).resolve() for task in tasks}
    for task in tasks:
        for path in {Path(IMAGES) / task.name, Path(IMAGES) / task.name.with_suffix(".png")}:
            owner = owners.get(str(path))
            # a repair that was killed has left its details, and no record
            is_strange = owner is None and (out / path).exists() and not details(out, task).is_dir()
            if (out / path).resolve() in inputs or is_strange:
                raise ValueError(f"{out / path} was not written by a repair and would be. Give another --out.")
            if owner not in (None, str(details(Path(), task))):
                raise ValueError(f"{out / path} is the repair of {records[str(owner)]['image']}. Give another --out.")


def done(out: Path, record: Mapping[str, Any], digest: str) -> bool:
    """Whether a picture has been repaired, and all is there.

    Raises:
        ValueError: It was repaired from another picture, prompt or mask, or with other settings.
    """
    if record.get("digest") != digest:
        raise ValueError(
            f"{out / record['details']} holds a repair of {record['image']} with other settings, prompt or mask, or of "
            f"another picture. Give another --out, or delete that folder and {out / record['picture']}."
        )
    return (out / record["picture"]).is_file() and (out / record["details"] / STRIP).is_file()


def verdict(repair: Repair) -> str:
    """What came of it, in a few words."""
    return REPAIRED if repair.is_changed else KEPT if repair.attempts else NO_FLAW


def strip(file: PictureFile, repair: Repair, mask: Bool[Tensor, "h w"]) -> Float[Tensor, "3 strip_h strip_w"]:
    """Before, heat, mask, after; side by side on white."""
    before, after = file.seen(file.pixels), file.seen(repair.pixels)
    heat = repair.heat if repair.heat is not None else torch.zeros_like(mask, dtype=torch.float32)
    shown = [before, overlay(before, heat), torch.lerp(before, mask.float().expand(3, -1, -1), 0.7), after]
    tiles = [_at_a_good_size(one) for one in shown]
    gap = torch.ones(3, tiles[0].shape[1], GAP)
    return torch.cat([part for tile in tiles for part in (tile, gap)][:-1], dim=2)


def as_json(attempt: Attempt) -> dict[str, Any]:
    """An attempt; the box is left, top, right, bottom, of which the last two are just outside."""
    box = attempt.region.box
    return {
        "round": attempt.round + 1,
        "box": [box.left, box.top, box.right, box.bottom],
        "heat": attempt.region.heat,
        "candidates": [vars(candidate) for candidate in attempt.candidates],
        "chosen": attempt.chosen,
        "why": "no candidate is better than the picture as it was and lets no other score fall by more than `tolerance`"
        if attempt.chosen is None
        else "the best of those that let no other score fall by more than `tolerance`",
    }


def write_summary(
    out: Path, records: Sequence[Mapping[str, Any]], problems: Mapping[str, str], objective: str, settings: str
) -> None:
    """`summary.json` and the page, of all pictures in the folder."""
    write_json(out / SUMMARY, {"objective": objective, "pictures": list(records), "problems": dict(problems)})
    pictures = [_picture(out, record, objective) for record in records]
    title = f"{len(records):,} pictures looked at"
    write_repair_report(out / REPORT, RepairReport(title, objective, pictures, list(problems.items()), settings))


def as_table(records: Sequence[Mapping[str, Any]], objective: str) -> str:
    """A line for each picture, the largest gain first."""
    lines = [f"{objective:>24}  picture"]
    for record in sorted(records, key=lambda one: one["before"][objective] - one["after"][objective]):
        before, after = record["before"][objective], record["after"][objective]
        lines.append(f"{before:10.3f} -> {after:10.3f}  {record['image']}: {record['verdict']}")
    return "\n".join(lines)


def _picture(out: Path, record: Mapping[str, Any], objective: str) -> RepairedPicture:
    before, after = record["before"], record["after"]
    said = f"{record['verdict']}: {objective} {before[objective]:.2f} -> {after[objective]:.2f}"
    name = Path(record["picture"]).relative_to(IMAGES)
    tried = record["attempts"]
    return RepairedPicture(
        name=str(name),
        text=record["text"],
        strip=partial(read_image, out / record["details"] / STRIP),
        before=before,
        after=after,
        verdict=said if tried else record["verdict"],
        regions=len(tried),
        candidates=sum(len(attempt["candidates"]) for attempt in tried),
        seconds=record["seconds"],
    )


def _at_a_good_size(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 _ _"]:
    """Small pictures enlarged by whole numbers, so that pixels stay pixels; large ones made smaller."""
    longer = max(image.shape[1:])
    if longer < SIDE:
        times = SIDE // longer
        return image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    if longer <= 2 * SIDE:
        return image
    size = [max(1, round(side * 2 * SIDE / longer)) for side in image.shape[1:]]
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _save(image: Float[Tensor, "3 h w"], path: Path) -> None:
    levels: Any = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    grey = bool(np.array_equal(levels[..., 0], levels[..., 1]) and np.array_equal(levels[..., 1], levels[..., 2]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(levels[..., 0] if grey else levels).save(temporary, format="PNG")
