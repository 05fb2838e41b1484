"""A tiny ResNet critic in its folder format: 32 x 32 pixels, random weights, real files."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.resnet import ResnetConfig, ResnetNetwork
from rewards.weights import CONFIG, WEIGHTS, write_network
from tests.rewards import golden

TINY: dict[str, Any] = {
    "image_size": 32,
    "stem_width": 8,
    "widths": (16, 32),
    "depths": (1, 2),
    "groups": 2,
    "heatmap_widths": (16, 16, 16, 12, 8),
}


def save_tiny_resnet(folder: Path) -> ResnetNetwork:
    """Write a network to `folder`, and return it."""
    network = ResnetNetwork(ResnetConfig(**TINY))
    golden.randomise(network)
    write_network(folder, {WEIGHTS: network.state_dict()}, {CONFIG: asdict(network.config)})
    return network
