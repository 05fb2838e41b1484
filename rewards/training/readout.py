"""The readouts of scores that read the rest, fitted to all pictures at once after a training (ours, not the paper's).

Learned step by step they learn little: the features' mean tells most of what they tell, and noise hides the rest.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.rahf.network import HEATMAPS, SCORES, RahfNetwork
from rewards.rahf.tokens import Tokenize
from rewards.training.rahf import RahfBatch

PENALTY = 1e-4
"""Of the squares of the weights on what is read, standardised: where reading says nothing, nothing is read."""


@dataclass(frozen=True)
class Read:
    """What the readouts see of some pictures, and what people said.

    Attributes:
        read: See `RahfNetwork.readings`.
        logits: Of each head alone.
        scores: In the order of `SCORES`; NaN where nobody gave one.
    """

    read: Float[Tensor, "batch read"]
    logits: Float[Tensor, "batch 4"]
    scores: Float[Tensor, "batch 4"]


def with_readouts(network: RahfNetwork, mark_token: int) -> RahfNetwork:
    """A copy of a network with several heads whose scores also read the rest: nothing of it, until readouts are fitted.

    `mark_token` is that of `RahfConfig`.
    """
    reading = RahfNetwork(replace(network.config, scores_read_rest=True, mark_token=mark_token))
    reading.load_state_dict(reading.state_dict() | network.state_dict())
    return reading


def fit_readouts(network: RahfNetwork, batches: Iterable[RahfBatch], tokenize: Tokenize) -> None:
    """Set the readout of each score to the least squared error of the scores; what they were before does not matter.

    All else stays as it is, and so does the readout of a score that fewer than two pictures have.

    Raises:
        ValueError: Scores of the network read nothing.
    """
    if not network.config.scores_read_rest:
        raise ValueError("The network has no readouts to fit: its configuration needs scores_read_rest.")
    network.eval()
    parts = [_read(network, batch, tokenize) for batch in batches]
    read, logits, scores = (torch.cat([getattr(part, name) for part in parts]) for name in Read.__dataclass_fields__)
    for column in range(len(SCORES)):
        given = scores[:, column].isfinite()
        if given.sum() > 1:
            weights, bias = fit_readout(read[given], logits[given, column], scores[given, column])
            with torch.no_grad():
                network.readouts.weight[column] = weights
                network.readouts.bias[column] = bias


def fit_readout(
    read: Float[Tensor, "batch read"], logits: Float[Tensor, " batch"], scores: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, " read"], Float[Tensor, ""]]:
    """Weights w and bias b with the least mean of (sigmoid(logit + read w + b) - score)^2 (L-BFGS in float64).

    Raises:
        ValueError: Fewer than two scores.
    """
    if len(scores) < 2:
        raise ValueError(f"A score was given to {len(scores)} pictures; a readout is fitted to two or more.")
    read, logits, scores = read.double(), logits.double(), scores.double()
    # what is nearly constant must not get huge weights
    mean, deviation = read.mean(0), read.std(0).clamp(min=1e-3)
    standard, weights = (read - mean) / deviation, torch.zeros(read.shape[1] + 1, dtype=torch.float64)
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
    ids, real = tokenize(batch.prompts)
    fused = network.fuse(network.see(batch.pixels), ids, real)
    maps = torch.stack([network.heatmap(fused.features, name) for name in HEATMAPS], dim=1)
    logits, read = network.readings(fused, maps, ids)
    return Read(read.cpu(), logits.cpu(), batch.scores.cpu())
