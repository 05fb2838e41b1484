"""The loss of the ResNet that RAHF is compared with, on rich feedback: scores and heatmaps, but no words."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.resnet import ResnetNetwork
from rewards.training.rahf import LossWeights, RahfBatch, fit_targets, heatmap_error, kld, score_error, weighted_sum


class ResnetLoss:
    """The loss of a `ResnetNetwork` on a `RahfBatch` of its pixels, as `align.train` takes it.

    It has no words: what they count in `weights` is not used, nor are the prompts of a batch.
    """

    def __init__(self, weights: LossWeights) -> None:
        self._weights = weights

    def __call__(self, module: nn.Module, batch: RahfBatch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The weighted sum of the parts; nothing of it is random."""
        assert isinstance(module, ResnetNetwork)
        return weighted_sum(self.parts(module, batch, generator), self._weights)

    def parts(
        self, network: ResnetNetwork, batch: RahfBatch, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts by their names in `LossWeights`: `heatmap` and `score`, and `kld` where that counts."""
        del generator
        features = network.see(batch.pixels)
        maps, targets = network.draw(features), fit_targets(batch.heatmaps, batch.pixels.shape[-1])
        parts = {
            "heatmap": heatmap_error(maps, targets, self._weights.lift),
            "score": score_error(network.score(features), batch.scores),
        }
        return parts | ({"kld": kld(maps, targets)} if self._weights.kld else {})
