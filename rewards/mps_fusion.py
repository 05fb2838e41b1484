"""The network with which MPS looks at an image through a prompt (arXiv 2405.14705, section 4).

Each layer lets the image's tokens ask the prompt's tokens and then each other. Keys and values have one head, which all
heads of the queries share; attention and feed-forward read the same normalised input and are added; no linear map has a
bias, and the last layer is not normalised.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

HEAD_WIDTH = 64
MLP_RATIO = 4


@final
class Fusion(nn.Module):
    """Image tokens that have read those tokens of the prompt that a mask lets through.

    Arguments:
        width: Of the tokens; the joint width of the CLIP.
        layers: 4 in the published network.
        heads: Of the queries, each `HEAD_WIDTH` wide; 16 in the published network.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.to_prompt = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.to_image = nn.ModuleList(SelfAttention(width, heads) for _ in range(layers))

    def forward(
        self,
        image: Float[Tensor, "batch n width"],
        prompt: Float[Tensor, "batch m width"],
        keep: Bool[Tensor, "batch m"],
    ) -> Float[Tensor, "batch n width"]:
        """The fused tokens, in the order of the image's; `keep` is True where a token of the prompt is seen."""
        for to_prompt, to_image in zip(self.to_prompt, self.to_image, strict=True):
            image = image + to_prompt(image, prompt, keep)
            image = image + to_image(image)
        return image


@final
class CrossAttention(nn.Module):
    """Image tokens ask prompt tokens; beside it, a feed-forward of the image tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = MLP_RATIO * width
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_q = nn.Linear(width, heads * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, width, bias=False)
        self.ff_in = nn.Linear(width, 2 * inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        image: Float[Tensor, "batch n width"],
        prompt: Float[Tensor, "batch m width"],
        keep: Bool[Tensor, "batch m"],
    ) -> Float[Tensor, "batch n width"]:
        """What is added to the image tokens."""
        image = self.norm(image)
        key, value = self.to_kv(prompt).chunk(2, dim=-1)
        seen = _attend(_heads(self.to_q(image)), key, value, keep)
        return self.to_out(seen) + self.ff_out(_swiglu(self.ff_in(image)))


@final
class SelfAttention(nn.Module):
    """Image tokens ask each other, with rotary positions; beside it, a feed-forward. One linear map feeds both."""

    inv_freq: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = MLP_RATIO * width
        self.widths = (heads * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 2 * inner)
        self.norm = nn.LayerNorm(width, bias=False)
        self.proj = nn.Linear(width, sum(self.widths), bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, width, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH))

    def forward(self, image: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        """What is added to the image tokens."""
        query, key, value, ff = self.proj(self.norm(image)).split(self.widths, dim=-1)
        angles = self._angles(image)
        seen = _attend(_rotate(_heads(query), angles), _rotate(key, angles), value)
        return self.to_out(seen) + self.ff_out(_swiglu(ff))

    def _angles(self, image: Float[Tensor, "batch n width"]) -> Float[Tensor, "n half"]:
        """Position times frequency: never in half precision, where positions near 256 would be off by half a radian."""
        dtype = torch.promote_types(image.dtype, torch.float32)
        positions = torch.arange(image.shape[1], device=image.device, dtype=dtype)
        return positions[:, None] * self.inv_freq.to(dtype)


def cast(fusion: Fusion, device: torch.device, dtype: torch.dtype) -> Fusion:
    """Move the network, and cast its parameters but not the rotary frequencies (see `SelfAttention`)."""
    fusion.to(device)
    for parameter in fusion.parameters():
        parameter.data = parameter.data.to(dtype)
    return fusion


def _heads(query: Float[Tensor, "batch n inner"]) -> Float[Tensor, "batch head n d"]:
    return query.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def _attend(
    query: Float[Tensor, "batch head n d"],
    key: Float[Tensor, "batch m d"],
    value: Float[Tensor, "batch m d"],
    keep: Bool[Tensor, "batch m"] | None = None,
) -> Float[Tensor, "batch n inner"]:
    """Softmax attention of many heads to one, the heads side by side."""
    logits = torch.einsum("bhnd,bmd->bhnm", query * HEAD_WIDTH**-0.5, key)
    if keep is not None:
        logits = logits.masked_fill(~keep[:, None, None], float("-inf"))
    return torch.einsum("bhnm,bmd->bnhd", logits.softmax(-1), value).flatten(-2)


def _rotate(x: Float[Tensor, "*batch n d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "*batch n d"]:
    """Turn the pair of components i and i + d/2 by angle i of the token's position (arXiv 2104.09864, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _swiglu(x: Float[Tensor, "*batch double"]) -> Float[Tensor, "*batch inner"]:
    """The first half, gated by SiLU of the second (arXiv 2002.05202, equation 6)."""
    value, gate = x.chunk(2, dim=-1)
    return value * silu(gate)
