"""Symmetries of the sandbox: a picture mirrored or with its colour channels exchanged, under a caption that follows."""

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from sandbox.world import COLOURS, Spec

_MIRRORED = {"left of": "right of", "right of": "left of"}
_CHANNELS = tuple(permutations(range(3)))


@dataclass(frozen=True)
class Symmetry:
    """Mirror left and right or not, and exchange the channels; gold scores of a picture stay what they were."""

    mirror: bool
    channels: tuple[int, ...]

    @staticmethod
    def draw(generator: np.random.Generator) -> "Symmetry":
        """One of the twelve, at random."""
        return Symmetry(bool(generator.integers(2)), _CHANNELS[generator.integers(len(_CHANNELS))])

    def spec(self, spec: Spec) -> Spec:
        """What the transformed picture shows."""
        relation = _MIRRORED.get(spec.relation or "", spec.relation) if self.mirror else spec.relation
        kinds = tuple(replace(kind, colour=self._colour(kind.colour)) for kind in spec.kinds)
        return replace(spec, kinds=kinds, relation=relation)

    def pixels(self, pixels: Tensor) -> Tensor:
        """The transformed pictures, of shape (..., 3, h, w)."""
        pixels = pixels.index_select(-3, torch.tensor(self.channels, device=pixels.device))
        return pixels.flip(-1) if self.mirror else pixels

    def _colour(self, name: str) -> str:
        wanted = tuple(COLOURS[name][channel] for channel in self.channels)
        return next(other for other, colour in COLOURS.items() if colour == wanted)
