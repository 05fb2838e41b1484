"""The network with which MPS looks at an image through a prompt (arXiv 2405.14705, section 4).

Each layer lets the image's tokens ask the prompt's tokens and then each other. Keys and values have one head, which all
heads of the queries share; attention and feed-forward read the same normalised input and are added; no linear map has a
bias, and the last layer is not normalised.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, silu

HEAD_WIDTH = 64
MLP_RATIO = 4


@final
class Fusion(nn.Module):
    """What the image's first token has read, through all others, of the tokens of the prompt that a mask lets through.

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
        keep: Bool[Tensor, "batch condition m"],
    ) -> Float[Tensor, "batch condition width"]:
        """The first token under each condition; `keep` is True where a token of the prompt is seen.

        Before the first reading all conditions see the same image: what does not depend on them is computed once. After
        the last one only the first token is asked for.
        """
        count, last = keep.shape[1], len(self.to_image) - 1
        image = (image[:, None] + self.to_prompt[0](image, prompt, keep)).flatten(0, 1)
        prompt, keep = prompt.repeat_interleave(count, 0), keep.flatten(0, 1)[:, None]
        for layer, to_image in enumerate(self.to_image):
            if layer > 0:
                image = image + self.to_prompt[layer](image, prompt, keep)[:, 0]
            image = image[:, :1] + to_image(image, image[:, :1]) if layer == last else image + to_image(image, image)
        return image[:, 0].unflatten(0, (-1, count))


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
        keep: Bool[Tensor, "batch condition m"],
    ) -> Float[Tensor, "batch condition n width"]:
        """What is added to the image tokens under each condition."""
        image = self.norm(image)
        key, value = self.to_kv(prompt).chunk(2, dim=-1)
        seen = _attend(_heads(self.to_q(image))[:, None], key[:, None], value[:, None], keep)
        return self.to_out(seen) + self.ff_out(_swiglu(self.ff_in(image)))[:, None]


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

    def forward(
        self, image: Float[Tensor, "batch n width"], asking: Float[Tensor, "batch asking width"]
    ) -> Float[Tensor, "batch asking width"]:
        """What is added to the tokens `asking`, the first ones of the image."""
        to_query, to_key, to_value, to_ff = self.proj.weight.split(self.widths)
        angles, image, asking = self._angles(image), self.norm(image), self.norm(asking)
        query = _rotate(_heads(linear(asking, to_query)), angles[: asking.shape[1]])
        seen = _attend(query, _rotate(linear(image, to_key), angles), linear(image, to_value))
        return self.to_out(seen) + self.ff_out(_swiglu(linear(asking, to_ff)))

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
    query: Float[Tensor, "*batch head n d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m d"],
    keep: Bool[Tensor, "*masked m"] | None = None,
) -> Float[Tensor, "*_ n inner"]:
    """Softmax attention of many heads to one, the heads side by side."""
    logits = torch.einsum("...hnd,...md->...hnm", query * HEAD_WIDTH**-0.5, key)
    if keep is not None:
        logits = logits.masked_fill(~keep[..., None, None, :], float("-inf"))
    return torch.einsum("...hnm,...md->...nhd", logits.softmax(-1), value).flatten(-2)


def _rotate(x: Float[Tensor, "*batch n d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "*batch n d"]:
    """Turn the pair of components i and i + d/2 by angle i of the token's position (arXiv 2104.09864, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _swiglu(x: Float[Tensor, "*batch double"]) -> Float[Tensor, "*batch inner"]:
    """The first half, gated by SiLU of the second (arXiv 2002.05202, equation 6)."""
    value, gate = x.chunk(2, dim=-1)
    return value * silu(gate)
