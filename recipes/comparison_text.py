"""The comparison of two folders for the terminal and as JSON, and what a reader must know of it in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from recipes.comparison import Compared, Move
from recipes.pairing import ORDER, Pairing

MOVED = 5
"""Prompts named from either end of those that moved."""

TIES = {
    "seed": "the seed",
    "sample number": "the sample's number",
    "file": "the file's place below its folder",
    "file name": "the file's name",
    ORDER: "their place among its images, in the order of the files",
}


def notes(pairing: Pairing, compared: Sequence[Compared]) -> list[str]:
    """What a reader must know of the pairs, in sentences."""
    said = [f"The two images of a pair share the prompt and {TIES[pairing.tie]}."]
    if pairing.same_seeds is False:
        said.append(
            "Warning: the seeds differ, so the images of a pair do not start from the same noise, and the intervals "
            "are wider than they could be. Generate both with one --seed."
        )
    if any(pairing.unpaired):
        first, second = map(len, pairing.unpaired)
        said.append(f"{first:,} images of A and {second:,} of B have no partner and are left out.")
    if pairing.uneven:
        said.append(
            f"{pairing.uneven:,} of {len(pairing.prompts):,} common prompts have more images in one folder than in the "
            "other; the pairs that there are were compared."
        )
    if len(pairing.prompts) == 1:
        said.append("All pairs are of one prompt: the intervals are over its images, and say nothing of other prompts.")
    said += [f"{one.unscored:,} pairs have no finite score by {one.name}." for one in compared if one.unscored]
    return said


def as_table(
    folders: Sequence[str], names: Sequence[Sequence[str]], pairing: Pairing, compared: Sequence[Compared]
) -> str:
    """The comparison for the terminal; `names` are the images of either folder."""
    width = max(6, *(len(one.name) for one in compared))
    lines = [
        f"{side}: {folder}, {len(images):,} images" for side, folder, images in zip("AB", folders, names, strict=True)
    ]
    lines.append(f"{len(pairing.pairs):,} pairs of {len(pairing.prompts):,} prompts")
    lines += notes(pairing, compared)
    for side, left, images in zip("AB", pairing.unpaired, names, strict=True):
        if left:
            more = f" and {len(left) - MOVED:,} more" if len(left) > MOVED else ""
            lines.append(f"without a partner in {side}: {', '.join(images[place] for place in left[:MOVED])}{more}")
    lines.append(
        f"\n{'reward':<{width}} {'A':>9} {'B':>9} {'B - A':>9}  95 % interval       {'B wins':>7} {'pairs':>7}"
    )
    for one in compared:
        row = one.row
        lines.append(
            f"{one.name:<{width}} {row.base_mean:>9.4f} {row.tuned_mean:>9.4f} {row.difference:>+9.4f}  "
            f"[{row.ci_low:+.4f}, {row.ci_high:+.4f}]  {row.win_rate:>7.1%} {row.n:>7,}"
        )
    return "\n".join([*lines, *_moved(compared[0])])


def _moved(one: Compared) -> list[str]:
    moves = [*one.gained[:MOVED], *reversed(one.lost[:MOVED])]
    return [f"\nmoved most by {one.name}", *(f"{move.difference:>+9.4f}  {_short(move.prompt)}" for move in moves)]


def _short(prompt: str, most: int = 100) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def as_json(
    folders: Sequence[str], names: Sequence[Sequence[str]], pairing: Pairing, compared: Sequence[Compared]
) -> dict[str, Any]:
    """The comparison as JSON values."""
    sides = {
        side: {"folder": folder, "images": len(images), "unpaired": [images[place] for place in left]}
        for side, folder, images, left in zip("ab", folders, names, pairing.unpaired, strict=True)
    }
    tie: dict[str, Any] = {
        "tie": pairing.tie,
        "pairs": len(pairing.pairs),
        "prompts": len(pairing.prompts),
        "same_seeds": pairing.same_seeds,
        "uneven_prompts": pairing.uneven,
    }
    return sides | {"pairing": tie, "notes": notes(pairing, compared), "rows": [_line(one) for one in compared]}


def _line(one: Compared) -> dict[str, Any]:
    row = asdict(one.row)
    row |= {"mean_a": row.pop("base_mean"), "mean_b": row.pop("tuned_mean"), "win_rate_b": row.pop("win_rate")}
    row |= {"interval_over": one.over, "unscored_pairs": one.unscored}
    ends: Mapping[str, Sequence[Move]] = {"gained": one.gained[:MOVED], "lost": one.lost[:MOVED]}
    return row | {end: [_moved_by(move) for move in moves] for end, moves in ends.items()}


def _moved_by(move: Move) -> dict[str, Any]:
    numbers = {"mean_a": move.mean_a, "mean_b": move.mean_b, "difference": move.difference}
    return {"prompt": move.prompt, "pairs": len(move.pairs)} | numbers
