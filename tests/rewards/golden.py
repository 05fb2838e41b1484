"""What the authors' own code gave on weights made by a rule; `tests/parity` holds rule, inputs and numbers."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.parity.rule import _unit as unit  # pyright: ignore[reportPrivateUsage]
from tests.parity.rule import make_state_dict

FOLDER = Path(__file__).parents[1] / "parity"


@cache
def run(name: str) -> dict[str, Any]:
    """The golden numbers of one reward."""
    return read("golden.json")["runs"][name]


@cache
def read(name: str) -> dict[str, Any]:
    """A file of the folder."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def prompts() -> list[str]:
    """The eight prompts."""
    return read("prompts.json")["prompts"]


@cache
def image(index: int) -> Tensor:
    """One of the eight pictures, RGB in [0, 1]."""
    path = next((FOLDER / "images").glob(f"{index}_*.png"))
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255


def checkpoint(layout: str, gains: Sequence[Any] | None = None) -> dict[str, Tensor]:
    """The state dict that the rule makes for a layout."""
    state = make_state_dict(FOLDER / f"layouts/{layout}.json", gains=gains)
    return {key: torch.from_numpy(np.asarray(array)) for key, array in state.items()}


def gradient_input(size: int) -> Tensor:
    """The pixels, already normalised, at which the golden gradients were taken."""
    return torch.from_numpy(unit("grad-input", 3 * size * size, "")).view(1, 3, size, size)


def assert_sampled(tensor: Tensor, sample: dict[str, Any], atol: float, rtol: float = 0.0) -> None:
    """A tensor has the shape, mean, standard deviation and values of a golden sample."""
    assert list(tensor.shape) == sample["shape"]
    values = tensor.flatten()[sample["flat_index"]]
    torch.testing.assert_close(values, torch.tensor(sample["values"]).to(values), atol=atol, rtol=rtol)
    torch.testing.assert_close(tensor.double().mean().item(), sample["mean"], atol=max(atol, 1e-6), rtol=1e-4)


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Give fresh weights a strength at which every part of a tiny network is felt."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 1
        plain = parameter.dim() == 1 or parameter.shape[1:] == (1, 1)
        parameter.data = parameter.data + 0.1 * noise if plain else noise / fan_in**0.5
