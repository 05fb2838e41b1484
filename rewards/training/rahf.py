"""What training RAHF needs beyond a loop: its losses on rich feedback, and on captions (arXiv 2312.10240, section 4.1).

A batch holds what people said of some images. The network of the paper's "augmented prompt" form is told by a prefix
of the prompt what to predict: each image teaches it, beside the words, one score and one map a step, drawn anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from rewards.rahf.network import HEATMAPS, SCORES, Fused, RahfNetwork
from rewards.rahf.tokens import Padded, Tokenize
from rewards.rahf.words import task_prompt

KLD_EPS = 1e-8


@dataclass(frozen=True)
class RahfBatch:
    """Images, and what people said of them.

    Attributes:
        pixels: Preprocessed.
        prompts: Their words, joined by spaces.
        marked: The prompts with `_0` behind misaligned words (see `rewards.rahf.words.mark_words`).
        scores: In [0, 1], in the order of `SCORES`; NaN where nobody gave one.
        heatmaps: In [0, 1], in the order of `HEATMAPS`; of any size; NaN for an image whose maps nobody drew.
    """

    pixels: Float[Tensor, "batch 3 size size"]
    prompts: Sequence[str]
    marked: Sequence[str]
    scores: Float[Tensor, "batch 4"]
    heatmaps: Float[Tensor, "batch 2 h w"]

    def to(self, device: torch.device) -> "RahfBatch":
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("pixels", "scores", "heatmaps")}
        return replace(self, **tensors)


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts; those of the paper could not be confirmed, public ports use 1, 1, 1.

    Attributes:
        heatmap: Of the mean squared error of a pixel.
        score: Of the squared error of a score.
        words: Of the cross-entropy of a token, in nats.
        kld: Of the divergence of the maps' distributions, where there is something to see; 0 leaves it out.
        lift: Pixels of the map count by (heat + 1 / 255) / mean of that as far as this is 1, and alike where it is 0:
            against the map that is zero everywhere (as EvalMuse-Structure weighs them).
    """

    heatmap: float = 5.0
    score: float = 1.0
    words: float = 2.0
    kld: float = 0.0
    lift: float = 0.0


def weighted_sum(parts: Mapping[str, Float[Tensor, ""]], weights: LossWeights) -> Float[Tensor, ""]:
    """The loss of parts by their names in `LossWeights`."""
    return sum((getattr(weights, name) * value for name, value in parts.items()), torch.zeros(()))


class RahfLoss:
    """The loss of a `RahfNetwork` on a `RahfBatch`, as `align.train` takes it."""

    def __init__(self, tokenize: Tokenize, weights: LossWeights) -> None:
        self._tokenize = tokenize
        self._weights = weights

    def __call__(self, module: nn.Module, batch: RahfBatch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The weighted sum of the three parts."""
        assert isinstance(module, RahfNetwork)
        return weighted_sum(self.parts(module, batch, generator), self._weights)

    def parts(self, network: RahfNetwork, batch: RahfBatch, generator: torch.Generator) -> dict[str, Float[Tensor, ""]]:
        """The parts by their names in `LossWeights`."""
        seen = network.see(batch.pixels)
        bare = network.fuse(seen, *self._tokenize(batch.prompts))
        predict = self._prompted if network.config.prompted else _together
        scores, score_targets, maps, map_targets = predict(network, seen, bare, batch, generator)
        parts = {
            "heatmap": heatmap_error(maps, map_targets, self._weights.lift),
            "score": score_error(scores, score_targets),
            "words": written_loss(network, bare, self._tokenize(batch.marked)),
        }
        return parts | ({"kld": kld(maps, map_targets)} if self._weights.kld else {})

    def _prompted(
        self,
        network: RahfNetwork,
        seen: Float[Tensor, "batch seen width"],
        bare: Fused,
        batch: RahfBatch,
        generator: torch.Generator,
    ) -> "Predicted":
        """One score and one map of each image, drawn by the generator."""
        del bare
        which = {kind: torch.randint(len(names), (len(seen),), generator=generator) for kind, names in TASKS.items()}
        features = {
            kind: network.fuse(seen, *self._tokenize(_asking(kind, numbers.tolist(), batch.prompts))).features
            for kind, numbers in which.items()
        }
        rows, drawn = torch.arange(len(seen), device=seen.device), rows_with_maps(batch)
        asked = {kind: numbers.to(seen.device) for kind, numbers in which.items()}
        return (
            network.score(features["SCORE"], SCORES[0]),
            batch.scores[rows, asked["SCORE"]],
            network.heatmap(features["HEATMAP"][drawn], HEATMAPS[0]),
            fit_targets(batch.heatmaps, batch.pixels.shape[-1])[drawn, asked["HEATMAP"][drawn]],
        )


TASKS = {"SCORE": SCORES, "HEATMAP": HEATMAPS}
Predicted = tuple[Tensor, Tensor, Float[Tensor, "*batch size size"], Float[Tensor, "*batch size size"]]
"""Scores and what they should be, maps and what they should be."""


def _together(
    network: RahfNetwork,
    seen: Float[Tensor, "batch seen width"],
    bare: Fused,
    batch: RahfBatch,
    generator: torch.Generator,
) -> Predicted:
    """All scores and maps, in one pass, but for maps that nobody drew."""
    del seen, generator
    drawn = rows_with_maps(batch)
    maps = torch.stack([network.heatmap(bare.features[drawn], name) for name in HEATMAPS], dim=1)
    scores = torch.stack([network.score(bare.features, name) for name in SCORES], dim=1)
    return scores, batch.scores, maps, fit_targets(batch.heatmaps[drawn], batch.pixels.shape[-1])


def rows_with_maps(batch: RahfBatch) -> Int[Tensor, " drawn"]:
    """The numbers of the images whose maps people drew."""
    return batch.heatmaps.isfinite().flatten(1).all(1).nonzero()[:, 0]


def _asking(kind: str, numbers: Sequence[int], prompts: Sequence[str]) -> list[str]:
    return [task_prompt(kind, TASKS[kind][number], prompt) for number, prompt in zip(numbers, prompts, strict=True)]


def fit_targets(maps: Float[Tensor, "batch map h w"], size: int) -> Float[Tensor, "batch map size size"]:
    """The targets at the size that the network draws (bilinear, antialiased)."""
    if maps.shape[-2:] == (size, size):
        return maps
    return interpolate(maps, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def score_error(scores: Float[Tensor, "*batch"], targets: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """The mean squared error of the scores that somebody gave; 0 where there is none."""
    given = targets.isfinite()
    return mse_loss(scores[given], targets[given]) if given.any() else scores.sum() * 0


def heatmap_error(
    maps: Float[Tensor, "*batch h w"], targets: Float[Tensor, "*batch h w"], lift: float = 0.0
) -> Float[Tensor, ""]:
    """The mean squared error of a pixel; with `lift` hot pixels count more, by weights whose mean is 1; 0 of no map."""
    if not targets.numel():
        return maps.sum()
    weights = targets + 1 / 255
    weights = 1 - lift + lift * weights / weights.mean()
    return (weights * (maps - targets).square()).mean()


def kld(maps: Float[Tensor, "*batch h w"], targets: Float[Tensor, "*batch h w"]) -> Float[Tensor, ""]:
    """The mean over maps with any heat of sum g log(g / p), both maps divided by their sums; 0 where there is none."""
    maps, targets = (values.flatten(0, -3).flatten(1) for values in (maps, targets))
    hot = targets.sum(1) > 0
    if not hot.any():
        return maps.sum() * 0
    p, g = (values[hot] / (values[hot].sum(1, keepdim=True) + KLD_EPS) for values in (maps, targets))
    return torch.xlogy(g, (g + KLD_EPS) / (p + KLD_EPS)).sum(1).mean()


def written_loss(
    network: RahfNetwork,
    fused: Fused,
    target: Padded,
) -> Float[Tensor, ""]:
    """The cross-entropy in nats of each token of the text that should be written, given those before it."""
    ids, real = target
    return cross_entropy(network.write_logits(fused, ids)[real], ids[real])


def caption_loss(tokenize: Tokenize) -> Callable[[nn.Module, RahfBatch, torch.Generator], Float[Tensor, ""]]:
    """The loss of the pre-training: to write the prompt of an image, seeing only the image."""

    def loss(module: nn.Module, batch: RahfBatch, generator: torch.Generator) -> Float[Tensor, ""]:
        del generator
        assert isinstance(module, RahfNetwork)
        nothing = tokenize([""] * len(batch.pixels))
        fused = module.fuse(module.see(batch.pixels), *nothing, decoder_sees_image=True)
        return written_loss(module, fused, tokenize(batch.prompts))

    return loss
