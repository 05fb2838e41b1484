"""The readouts of score heads that read heat, fitted to all pictures at once after a training (ours, not the paper's).

Step by step they learn little: the features' mean tells most of what the heat tells, and noise hides the rest.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.rahf.heads import HeatReadingScoreHead
from rewards.rahf.network import HEATMAPS, SCORES, RahfNetwork
from rewards.rahf.tokens import Tokenize
from rewards.training.rahf import RahfBatch

PENALTY = 1e-4
"""Of the squares of the weights on what is read, standardised: where reading says nothing, nothing is read."""


@dataclass(frozen=True)
class Read:
    """What the score heads see of some pictures, and what people said.

    Attributes:
        pooled: What the readout reads.
        logits: Of each head alone.
        scores: In the order of `SCORES`; NaN where nobody gave one.
    """

    pooled: Float[Tensor, "batch read"]
    logits: Float[Tensor, "batch 4"]
    scores: Float[Tensor, "batch 4"]


def fit_readouts(network: RahfNetwork, batches: Iterable[RahfBatch], tokenize: Tokenize) -> None:
    """Set the readout and the last bias of each score head to the least squared error of the scores.

    All else stays as it is, maps included, and so does the head of a score that fewer than two pictures have.

    Raises:
        ValueError: Scores of the network read no heat.
    """
    if not network.config.scores_read_heat:
        raise ValueError("The network has no readouts to fit: its configuration needs scores_read_heat.")
    network.eval()
    parts = [_read(network, batch, tokenize) for batch in batches]
    pooled, logits, scores = (torch.cat([getattr(part, name) for part in parts]) for name in Read.__dataclass_fields__)
    for column, name in enumerate(SCORES):
        given = scores[:, column].isfinite()
        head = network.score_heads[name]
        assert isinstance(head, HeatReadingScoreHead)
        if given.sum() > 1:
            _set(head, *fit_readout(pooled[given], logits[given, column], scores[given, column]))


def with_readouts(network: RahfNetwork) -> RahfNetwork:
    """A copy of a network with several heads whose scores also read heat: nothing of it, until readouts are fitted."""
    reading = RahfNetwork(replace(network.config, scores_read_heat=True))
    kept = {re.sub(r"^(score_heads\.\w+)", r"\1.head", name): value for name, value in network.state_dict().items()}
    reading.load_state_dict(reading.state_dict() | kept)
    return reading


def fit_readout(
    pooled: Float[Tensor, "batch read"], logits: Float[Tensor, " batch"], scores: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, " read"], Float[Tensor, ""]]:
    """Weights w and bias b with the least mean of (sigmoid(logit + pooled w + b) - score)^2 (L-BFGS in float64).

    Raises:
        ValueError: Fewer than two scores.
    """
    if len(scores) < 2:
        raise ValueError(f"A score was given to {len(scores)} pictures; a readout is fitted to two or more.")
    pooled, logits, scores = pooled.double(), logits.double(), scores.double()
    # what is nearly constant must not get huge weights
    mean, deviation = pooled.mean(0), pooled.std(0).clamp(min=1e-3)
    standard, weights = (pooled - mean) / deviation, torch.zeros(pooled.shape[1] + 1, dtype=torch.float64)
    weights.requires_grad_()
    search = torch.optim.LBFGS([weights], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        search.zero_grad()
        guessed = (logits + standard @ weights[:-1] + weights[-1]).sigmoid()
        value = (guessed - scores).square().mean() + PENALTY * weights[:-1].square().sum()
        value.backward()
        return value

    search.step(error)
    slope = weights.detach()[:-1] / deviation
    return slope, weights.detach()[-1] - slope @ mean


@torch.no_grad()
def _read(network: RahfNetwork, batch: RahfBatch, tokenize: Tokenize) -> Read:
    features = network.fuse(network.see(batch.pixels), *tokenize(batch.prompts)).features
    maps = torch.stack([network.heatmap(features, name) for name in HEATMAPS], dim=1)
    heads = [head for name in SCORES if isinstance(head := network.score_heads[name], HeatReadingScoreHead)]
    logits = torch.stack([head.head.logits(features) for head in heads], dim=1)
    return Read(heads[0].pooled(features, maps).cpu(), logits.cpu(), batch.scores.cpu())


@torch.no_grad()
def _set(head: HeatReadingScoreHead, weights: Tensor, bias: Tensor) -> None:
    last = head.head.dense[-1]
    assert isinstance(last, nn.Linear)
    head.readout.weight.copy_(weights[None])
    last.bias.add_(bias)
