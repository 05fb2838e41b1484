"""What is told of scores: a table or JSON on the terminal, one table of all scores on disk, and a page."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from align.report.scores import ScoredPicture, ScoreReport, write_score_report
from align.state import atomic_path
from recipes.configs.score import ScoreConfig
from recipes.critiques import Critiques
from recipes.images import Item
from recipes.score_place import COLUMNS, REPORT, TABLE
from recipes.scoring import Problems

BEST_SHOWN = 10
"""Prompts whose best image is printed."""
DECILES = tuple(step / 10 for step in range(1, 10))


@dataclass(frozen=True)
class Scored:
    """Images and all their scores.

    Attributes:
        items: The images.
        scores: By reward: a row for each image, NaN where it has none.
        dimensions: By reward.
        problems: Why an image has none.
        critiques: By reward, where its maps and words are.
    """

    items: Sequence[Item]
    scores: Mapping[str, Float[Tensor, "image _"]]
    dimensions: Mapping[str, Sequence[str]]
    problems: Problems
    critiques: Mapping[str, Critiques]

    def columns(self) -> dict[str, list[float | None]]:
        """ "REWARD DIMENSION" -> a score for each image."""
        return {
            f"{name} {dimension}": [None if math.isnan(value) else value for value in values[:, index].tolist()]
            for name, values in self.scores.items()
            for index, dimension in enumerate(self.dimensions[name])
        }

    def skipped(self) -> dict[str, str]:
        """The images that lack a score, each with the reason (which another process may have told)."""
        lacking = torch.stack([values.isnan().any(1) for values in self.scores.values()]).any(0).tolist()
        names = [item.name for item, lacks in zip(self.items, lacking, strict=True) if lacks]
        return {name: self.problems.get(name, "named above") for name in names}

    def check(self, strict: bool) -> None:
        """Raise a ValueError where no image has all its scores or, if `strict`, where one has not."""
        left_out = len(self.skipped())
        if left_out and (strict or left_out == len({item.name for item in self.items})):
            raise ValueError(f"{left_out:,} of {len(self.items):,} images were left out; they are named above.")


def publish(config: ScoreConfig, scored: Scored, folder: Path) -> None:
    """Print the summary; write the table of all scores, `all.parquet`, and the page if it is wanted."""
    columns = scored.columns()
    write_table(folder / TABLE, scored, columns)
    if config.report:
        write_report(folder / REPORT, scored)
    if config.format == "json":
        print(json.dumps(as_json(scored, columns), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(as_table(scored, columns))


def summarise(values: Sequence[float | None]) -> dict[str, Any]:
    """How the scores of a column lie; the standard deviation is that of these images, not an estimate."""
    finite = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(finite):
        return {"n": 0, "mean": None, "sd": None, "deciles": None}
    deciles = finite.quantile(finite.new_tensor(DECILES)).tolist()
    return {
        "n": len(finite),
        "mean": finite.mean().item(),
        "sd": finite.std(correction=0).item(),
        "deciles": deciles,
    }


def best_of_prompts(scored: Scored, values: Sequence[float | None]) -> list[tuple[str, float, int, str]]:
    """Of each prompt with several scored images the best one's name, its score, of how many, and the prompt."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for item, value in zip(scored.items, values, strict=True):
        if value is not None:
            groups.setdefault(item.text, []).append((value, item.name))
    best = {text: max(group, key=lambda pair: pair[0]) for text, group in groups.items() if len(group) > 1}
    return [(name, value, len(groups[text]), text) for text, (value, name) in best.items()]


def as_table(scored: Scored, columns: Mapping[str, Sequence[float | None]]) -> str:
    """Number, mean, standard deviation and deciles of each column, the best of each prompt, and what was left out."""
    width = max(map(len, ["score", *columns]))
    shares = "".join(f"{f'{share:.0%}':>9}" for share in DECILES)
    lines = [f"{'score':<{width}} {'n':>7} {'mean':>9} {'sd':>9}{shares}"]
    lines += [_line(f"{name:<{width}}", summarise(values)) for name, values in columns.items()]
    first = next(iter(columns))
    best = best_of_prompts(scored, columns[first])
    lines += [f"best by {first}:"] if best else []
    lines += [f"  {value:9.4f}  {name}, of {count}: {text[:80]}" for name, value, count, text in best[:BEST_SHOWN]]
    lines += [f"  and of {len(best) - BEST_SHOWN:,} more prompts"] if len(best) > BEST_SHOWN else []
    skipped = len(scored.skipped())
    lines += [f"{skipped:,} of {len(scored.items):,} images were left out; they are named above."] if skipped else []
    return "\n".join(lines)


def _line(head: str, summary: Mapping[str, Any]) -> str:
    if not summary["n"]:
        return f"{head} {0:>7} {'none':>9}"
    numbers = "".join(f"{value:>9.4f}" for value in summary["deciles"])
    return f"{head} {summary['n']:>7,} {summary['mean']:>9.4f} {summary['sd']:>9.4f}{numbers}"


def as_json(scored: Scored, columns: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """Everything, with null where an image has no score."""
    first = next(iter(columns))
    images = [
        {"name": item.name, "text": item.text, "scores": {name: values[index] for name, values in columns.items()}}
        for index, item in enumerate(scored.items)
    ]
    best = best_of_prompts(scored, columns[first])
    return {
        "summary": {name: summarise(values) for name, values in columns.items()},
        "best": [{"text": text, "name": name, "score": value, "of": count} for name, value, count, text in best],
        "images": images,
        "skipped": [{"name": name, "reason": reason} for name, reason in scored.skipped().items()],
    }


def write_table(path: Path, scored: Scored, columns: Mapping[str, Sequence[float | None]]) -> None:
    """A row for each image: its name, its prompt and its scores."""
    texts = [pa.array([getattr(item, name) for item in scored.items], pa.string()) for name in COLUMNS]
    values = [pa.array(column, pa.float32()) for column in columns.values()]
    with atomic_path(path) as temporary:
        pq.write_table(pa.table([*texts, *values], names=[*COLUMNS, *columns]), temporary)


def write_report(path: Path, scored: Scored) -> None:
    """The page of the images, each under what the critics drew."""
    columns, skipped = scored.columns(), scored.skipped()
    pictures = [
        _picture(scored, item, {name: values[index] for name, values in columns.items()})
        for index, item in enumerate(scored.items)
        if item.name not in skipped
    ]
    if pictures:
        title = f"{len(pictures):,} images by {', '.join(scored.scores)}"
        write_score_report(path, ScoreReport(title, list(columns), pictures, list(skipped.items())))
        print(f"report: {path}", file=sys.stderr)


def _picture(scored: Scored, item: Item, scores: Mapping[str, float | None]) -> ScoredPicture:
    overlays = {
        f"{reward} {kind}": partial(critiques.overlay, item, kind)
        for reward, critiques in scored.critiques.items()
        for kind in critiques.maps
    }
    first = next(iter(scored.critiques.values()), None)
    return ScoredPicture(item.name, item.text, item.image, scores, overlays, first.words(item) if first else ())
