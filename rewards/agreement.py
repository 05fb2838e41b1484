"""How far a reward agrees with what people said: its scores, maps and words on rows of rich feedback."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from rewards.base import Critic, Critique, Images, Reward
from rewards.datasets.rich_feedback import RichFeedback
from rewards.metrics import plcc, word_counts, word_scores
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.saliency import RICHHF, Conventions, heatmap_metrics

Column = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Agreement:
    """Of a reward with people, row by row.

    Attributes:
        scores: By the reward's dimensions.
        maps: By the name of a map, every metric of `rewards.saliency.HEATMAP_METRICS`; none for a reward without maps.
        words: Rows of `rewards.metrics.word_counts`; None for a reward that judges none.
    """

    scores: Mapping[str, Column]
    maps: Mapping[str, Mapping[str, Column]]
    words: Int[np.ndarray, "n 3"] | None

    def column(self, name: str) -> Column | None:
        """The scores that stand for one of RAHF's: those of that name, or the only ones; None where there are none."""
        only = next(iter(self.scores.values())) if len(self.scores) == 1 else None
        return self.scores.get(name, only)


def check_comparable(name: str, reward: Reward) -> None:
    """Refuse, with a ValueError, a reward of which nothing can be compared with what people say."""
    has_score = len(reward.dimensions) == 1 or bool({*SCORES} & {*reward.dimensions})
    if has_score or (isinstance(reward, Critic) and (reward.judges_words or {*HEATMAPS} & {*reward.heatmaps})):
        return
    raise ValueError(
        f"{name} has the dimensions {', '.join(reward.dimensions)}; people gave {', '.join(SCORES)}, and none of them "
        f"is one of these. Name one dimension, such as {name}.{reward.dimensions[0]}: it is compared with all four."
    )


@torch.no_grad()
def judge(
    reward: Reward,
    rows: Sequence[RichFeedback],
    batch_size: int,
    device: torch.device,
    progress: Callable[[int], object] = lambda count: None,
    conventions: Conventions = RICHHF,
) -> Agreement:
    """Ask a reward about all rows, `batch_size` at a time; `progress` is told how many are done each time.

    Predicted maps are compared at the size of people's: they are resized (bilinear, antialiased) where it is another.

    Raises:
        ValueError: No rows, or an image that cannot be read.
    """
    if not rows:
        raise ValueError("No rows came; agreement needs one or more.")
    parts = list[_Part]()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        parts.append(_judge(reward, batch, device, conventions))
        progress(len(batch))
    return _joined(parts, reward)


def selection(agreement: Agreement, rows: Sequence[RichFeedback]) -> dict[str, float]:
    """What tells one training from another: mean PLCC of the scores, mean CC of the maps, F1 of the words; their mean.

    A part is 0 where it is not defined (constant scores), and not counted where the reward does not give it.
    """
    parts = {"PLCC": float(np.mean([_plcc(agreement, rows, name) for name in SCORES]))}
    if agreement.maps:
        means = [mean_of_defined(metrics["cc"]) for metrics in agreement.maps.values()]
        parts["CC"] = float(np.nan_to_num(np.mean(means)))
    if agreement.words is not None:
        parts["F1"] = float(np.nan_to_num(word_scores(agreement.words.sum(0))[2]))
    return parts | {"selection": sum(parts.values()) / len(parts)}


def fit_map(heat: Float[Tensor, "h w"], size: Sequence[int]) -> Float[Tensor, "new_h new_w"]:
    """A heatmap at another height and width (bilinear, antialiased)."""
    if heat.shape == (*size,):
        return heat.float()
    resized = interpolate(heat.float()[None, None], size=(*size,), mode="bilinear", antialias=True)
    return resized[0, 0].clamp(0, 1)


def mean_of_defined(values: Column) -> float:
    """Of those that are not NaN; NaN where all are."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def people(rows: Sequence[RichFeedback], name: str) -> Column:
    """What people gave as one of the scores."""
    return np.array([row.scores[name] for row in rows])


def _plcc(agreement: Agreement, rows: Sequence[RichFeedback], name: str) -> float:
    found = agreement.column(name)
    return 0.0 if found is None else float(np.nan_to_num(plcc(found, people(rows, name))))


@dataclass(frozen=True)
class _Part:
    """Of one batch."""

    scores: Float[Tensor, "batch dimension"]
    maps: Mapping[str, Mapping[str, Float[Tensor, " batch"]]]
    words: Int[np.ndarray, "batch 3"] | None


def _judge(reward: Reward, rows: Sequence[RichFeedback], device: torch.device, conventions: Conventions) -> _Part:
    images = _stacked([row.image().to(device) for row in rows])
    prompts = [row.prompt for row in rows]
    if not isinstance(reward, Critic):
        return _Part(reward(images, prompts).cpu(), {}, None)
    said = reward.critique(images, prompts)
    maps = {name: _compare(said, name, rows, conventions) for name in HEATMAPS if name in said.heatmaps}
    counts = word_counts(said.misaligned, [row.misaligned for row in rows]) if reward.judges_words else None
    return _Part(said.scores.cpu(), maps, counts)


def _stacked(images: list[Float[Tensor, "3 _ _"]]) -> Images:
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


def _compare(
    said: Critique, name: str, rows: Sequence[RichFeedback], conventions: Conventions
) -> dict[str, Float[Tensor, " batch"]]:
    judged = [
        heatmap_metrics(fit_map(said.heatmaps[name][number].cpu(), target.shape)[None], target[None], conventions)
        for number, target in enumerate(row.heatmaps[name]() for row in rows)
    ]
    return {metric: torch.cat([one[metric] for one in judged]) for metric in judged[0]}


def _joined(parts: Sequence[_Part], reward: Reward) -> Agreement:
    scores = torch.cat([part.scores for part in parts]).double().numpy()
    maps = {
        name: {metric: torch.cat([part.maps[name][metric] for part in parts]).numpy() for metric in metrics}
        for name, metrics in parts[0].maps.items()
    }
    counts = [part.words for part in parts if part.words is not None]
    columns = {name: scores[:, index] for index, name in enumerate(reward.dimensions)}
    return Agreement(columns, maps, np.concatenate(counts) if counts else None)
