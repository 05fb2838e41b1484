"""How other code bases name and store the tensors of our networks: our state dict out of theirs, and its sizes.

Nothing is left over in silence: a tensor that is missing, unknown or of another shape is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Tensors: TypeAlias = Mapping[str, Tensor]
Shapes: TypeAlias = Mapping[str, torch.Size]

QKV = "{qkv}"
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of the published towers, by their width."""


class Files(NamedTuple):
    """A network as `rewards.weights.write_network` writes it: tensors, and then configurations, by file."""

    tensors: Mapping[str, Tensors]
    configs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Parts:
    """What goes into a network besides the tensors of its checkpoint.

    Attributes:
        clip: The tensors of a CLIP, for a head upon one.
        tokenizer: A `tokenizer.json`.
        vision_heads: Attention heads of the image tower, which no tensor tells; by default the published number.
        text_heads: The same of the text tower.
    """

    clip: Tensors | None = None
    tokenizer: Path | None = None
    vision_heads: int | None = None
    text_heads: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where another code base has the tensors of a network of ours.

    Attributes:
        renames: Pairs of a regular expression and its replacement; applied to one of our names in this order they give
            the original name. `{qkv}` in it stands for three tensors, which ours holds one above the other.
        unused: Regular expressions of original names that play no part.
        transposed: Our names of matrices that the original has the other way round.
    """

    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()

    def sources(self, name: str) -> tuple[str, ...]:
        """The original names of one of our tensors."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return tuple(name.replace(QKV, letter) for letter in "qkv") if QKV in name else (name,)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, to be asked for by our names."""

    tensors: Tensors
    layout: Layout

    def size(self, name: str, axis: int) -> int:
        """The length of an axis of one of our tensors that is stored whole.

        Raises:
            ValueError: It is missing, or has no such axis.
        """
        (key,) = self.layout.sources(name)
        if key not in self.tensors:
            raise ValueError(f"{key} is missing, which says how large the network is. {_advice(self.tensors)}")
        shape = tuple(self.tensors[key].shape)
        if axis >= len(shape):
            raise ValueError(f"{key} must have {axis + 1} or more axes, found {shape}. {_advice(self.tensors)}")
        return shape[::-1][axis] if name in self.layout.transposed else shape[axis]

    def layers(self, name: str, step: int = 1) -> list[str]:
        """The names that are there with 0, `step`, 2 `step`, ... for the `{}` in `name`."""
        names = (name.format(number) for number in count(0, step))
        return list(takewhile(lambda name: self.layout.sources(name)[0] in self.tensors, names))


def grid(positions: int) -> int:
    """Patches along a side of a square image, of whose positions the first is [CLS]."""
    return round((positions - 1) ** 0.5)


def heads(width: int, given: int | None, tower: str) -> int:
    """The attention heads of a tower: as given, or as published.

    Raises:
        ValueError: Nobody published a tower of this width, or the heads do not share it evenly.
    """
    if given is None and width not in PUBLISHED_HEADS:
        raise ValueError(
            f"No published {tower} tower is {width} wide, and tensors do not say how many attention heads it has. "
            f"Give {tower}_heads."
        )
    number = PUBLISHED_HEADS[width] if given is None else given
    if width % number:
        raise ValueError(f"{tower}_heads must divide the width of the {tower} tower, {width}; {number} was given.")
    return number


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """What a network expects in its state dict."""
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def translate(original: Tensors, expected: Shapes, layout: Layout) -> dict[str, Tensor]:
    """A state dict of another code base under our names.

    Arguments:
        original: State dict as that code base stores it.
        expected: Our names with their shapes.
        layout: Where that code base has them.

    Raises:
        ValueError: Names that are missing, unexpected or have another shape, with what was expected and what was found.
    """
    sources = {name: layout.sources(name) for name in expected}
    needed = {
        key: _original_shape(shape, len(sources[name]), name in layout.transposed)
        for name, shape in expected.items()
        for key in sources[name]
    }
    problems = [
        *(_misfit(key, shape, original) for key, shape in needed.items()),
        *(_surplus(key, tensor, layout) for key, tensor in original.items() if key not in needed),
    ]
    if found := [problem for problem in problems if problem]:
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(f"The checkpoint does not fit: {'; '.join(found[:5])}{more}. {_advice(original)}")
    return {name: _take([original[key] for key in sources[name]], name in layout.transposed) for name in expected}


def _original_shape(shape: torch.Size, parts: int, transposed: bool) -> tuple[int, ...]:
    shape = shape[::-1] if transposed else shape
    return tuple(shape) if parts == 1 else (shape[0] // parts, *shape[1:])


def _misfit(key: str, shape: tuple[int, ...], original: Tensors) -> str | None:
    if key not in original:
        return f"{key} is missing (expected {shape})"
    found = tuple(original[key].shape)
    return None if found == shape else f"{key} must be {shape}, found {found}"


def _surplus(key: str, tensor: Tensor, layout: Layout) -> str | None:
    known = any(re.fullmatch(pattern, key) for pattern in layout.unused)
    return None if known else f"{key} {tuple(tensor.shape)} is unexpected"


def _take(found: list[Tensor], transposed: bool) -> Tensor:
    whole = torch.cat(found) if len(found) > 1 else found[0]
    return (whole.T if transposed else whole).contiguous()


def _advice(tensors: Tensors) -> str:
    some = ", ".join(list(tensors)[:3])
    return f"The checkpoint has {len(tensors)} tensors ({some} ...): is it whole, and of this network?"
