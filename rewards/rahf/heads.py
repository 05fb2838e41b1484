"""The heads of RAHF, from a map of features to a heatmap or to a score, as the port and as the paper have them.

The paper (arXiv 2312.10240, supplement) gives kernels, strides and widths. Ours where it is silent: convolutions keep
the size of the map (those of 2 x 2 look right and down), and its LayerNorms are over the channels of each position.
Ours beside it: what readouts of scores read of maps and of marked words.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

HeadT = TypeVar("HeadT", bound=nn.Module)
HEAT_EPS = 1e-3
"""Added to heat before its logarithm is taken."""
HEAT_READ = 8
"""How many numbers `read_heat` gives of each map."""
MARKS_READ = 4
"""How many `read_chances` gives."""


@final
class ChannelNorm(nn.Module):
    """Divides by the root mean square over the channels of each position, and scales each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """x / sqrt(mean of x^2 over the channels + 1e-8) * scale, in float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * (wide.square().mean(1, keepdim=True) + 1e-8).rsqrt()).to(x.dtype) * self.scale


@final
class PortHeatmapHead(nn.Module):
    """Two convolutions, then as many doublings of the sides as there are further widths, each refined by a residual."""

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, *doublings = widths
        self.entry = nn.Sequential(
            _conv(features, first), nn.ReLU(), ChannelNorm(first), _conv(first, second), nn.ReLU(), ChannelNorm(second)
        )
        self.up = nn.ModuleList(_doubling(old, new) for old, new in pairwise([second, *doublings]))
        self.refine = nn.ModuleList(_residual(width) for width in doublings)
        self.exit = nn.Sequential(_conv(doublings[-1], doublings[-1]), nn.ReLU(), _conv(doublings[-1], 1))

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, "batch big_h big_w"]:
        """A map in [0, 1]."""
        x = self.entry(x)
        for up, refine in zip(self.up, self.refine, strict=True):
            x = up(x)
            x = (x + refine(x)).relu()
        return self.exit(x)[:, 0].sigmoid()


@final
class PortScoreHead(nn.Module):
    """Convolutions of 3 x 3 that thin out the channels, then dense layers over all that is left."""

    def __init__(self, features: int, positions: int, widths: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        steps = ([_conv(old, new), ChannelNorm(new), nn.ReLU()] for old, new in pairwise([features, *widths]))
        self.convs = nn.Sequential(*(layer for step in steps for layer in step))
        self.dense = _dense(positions * widths[-1], hidden)

    def logits(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, " batch"]:
        """What the sigmoid makes a score of."""
        return self.dense(self.convs(x).flatten(1))[:, 0]

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, " batch"]:
        """A score in [0, 1], higher is better."""
        return self.logits(x).sigmoid()


@final
class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """With the epsilon 1e-6 of the paper's library."""
        last = x.movedim(1, -1)
        return layer_norm(last, self.weight.shape, self.weight, self.bias, eps=1e-6).movedim(-1, 1)


@final
class PaperHeatmapHead(nn.Module):
    """Two convolutions; then doublings of the sides, each with two more convolutions; all with LayerNorm and ReLU."""

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, *doublings = widths
        layers = [*_normed(_conv(features, first)), *_normed(_conv(first, second))]
        for old, new in pairwise([second, *doublings]):
            layers += [*_normed(_up(old, new)), *_normed(_conv(new, new)), *_normed(_conv(new, new))]
        self.layers = nn.Sequential(*layers, _conv(doublings[-1], 1))

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, "batch big_h big_w"]:
        """A map in [0, 1]."""
        return self.layers(x)[:, 0].sigmoid()


@final
class PaperScoreHead(nn.Module):
    """Convolutions of 2 x 2 with LayerNorm and ReLU, then dense layers over all that is left."""

    def __init__(self, features: int, positions: int, widths: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        steps = (
            [nn.ZeroPad2d((0, 1, 0, 1)), *_normed(nn.Conv2d(old, new, kernel_size=2))]
            for old, new in pairwise([features, *widths])
        )
        self.convs = nn.Sequential(*(layer for step in steps for layer in step))
        self.dense = _dense(positions * widths[-1], hidden)

    def logits(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, " batch"]:
        """What the sigmoid makes a score of."""
        return self.dense(self.convs(x).flatten(1))[:, 0]

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, " batch"]:
        """A score in [0, 1], higher is better."""
        return self.logits(x).sigmoid()


def read_heat(maps: Float[Tensor, "batch maps h w"]) -> Float[Tensor, "batch read"]:
    """Of each map the mean, the mean root, the mean square and the peak; and the logarithm of each of them."""
    # where heat is 0, its root has no slope
    means = [power.mean((2, 3)) for power in (maps, maps.clamp(min=1e-6).sqrt(), maps.square())]
    values = torch.cat([*means, maps.amax((2, 3))], dim=1)
    return torch.cat([values, (values + HEAT_EPS).log()], dim=1)


def read_chances(
    chances: Float[Tensor, "batch tokens"], real: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch 4"]:
    """Of the chances that a word is marked before each token: mean, sum, the highest, and the logarithm of none."""
    chances = chances.where(real, 0).clamp(max=1 - HEAT_EPS)
    total = chances.sum(1)
    return torch.stack([total / real.sum(1), total, chances.amax(1), torch.log1p(-chances).sum(1)], dim=1)


def make_heatmap_head(form: str, features: int, widths: Sequence[int]) -> nn.Module:
    """A head that maps `features` channels to a heatmap.

    Arguments:
        form: "port" or "paper".
        features: Channels of the input.
        widths: Of the two convolutions, then of each doubling.

    Raises:
        ValueError: Another form.
    """
    return _choose({"port": PortHeatmapHead, "paper": PaperHeatmapHead}, form)(features, widths)


def make_score_head(
    form: str, features: int, positions: int, widths: Sequence[int], hidden: Sequence[int]
) -> PortScoreHead | PaperScoreHead:
    """A head that maps `features` channels to a score.

    Arguments:
        form: "port" or "paper".
        features: Channels of the input.
        positions: Height times width of the input.
        widths: Of the convolutions.
        hidden: Of the dense layers before the last.

    Raises:
        ValueError: Another form.
    """
    return _choose({"port": PortScoreHead, "paper": PaperScoreHead}, form)(features, positions, widths, hidden)


def _choose(kinds: dict[str, type[HeadT]], form: str) -> type[HeadT]:
    if form not in kinds:
        raise ValueError(f"heads {form!r} are unknown; use {' or '.join(kinds)}.")
    return kinds[form]


def _conv(old: int, new: int) -> nn.Conv2d:
    return nn.Conv2d(old, new, kernel_size=3, padding=1)


def _up(old: int, new: int) -> nn.ConvTranspose2d:
    """Doubles the sides."""
    return nn.ConvTranspose2d(old, new, kernel_size=3, stride=2, padding=1, output_padding=1)


def _doubling(old: int, new: int) -> nn.Sequential:
    return nn.Sequential(_up(old, new), ChannelNorm(new), nn.ReLU())


def _residual(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, width), ChannelNorm(width), nn.ReLU(), _conv(width, width), ChannelNorm(width))


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [layer, ChannelLayerNorm(layer.out_channels), nn.ReLU()]


def _dense(size: int, hidden: Sequence[int]) -> nn.Sequential:
    steps = ([nn.Linear(old, new), nn.ReLU()] for old, new in pairwise([size, *hidden]))
    return nn.Sequential(*(layer for step in steps for layer in step), nn.Linear(hidden[-1], 1))
