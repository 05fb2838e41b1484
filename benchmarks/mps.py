"""MPS with its four conditions beside MPS with one, on the same images.

python -m benchmarks.mps

The network has the published size (CLIP ViT-H/14 and a fusion of four layers) and random weights.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from open_clip import CLIP, get_model_config

from align.device import pick_device, pick_dtype, set_threads
from rewards.clip import CONFIG, WEIGHTS
from rewards.mps import CONDITIONS, FUSION, FUSION_CONFIG, MPS
from rewards.mps_fusion import Fusion
from rewards.weights import write_network

ROUNDS = 3
LIMIT = 1.5
"""How many times as long four may take."""


def main() -> None:
    """Print seconds a batch, and the ratio."""
    arguments = _parser().parse_args()
    device = pick_device(arguments.device)
    set_threads()
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place), arguments.architecture)
        conditions = {"one": {"overall": CONDITIONS["overall"]}, "four": CONDITIONS}
        rewards = {name: MPS(folder, device, pick_dtype(device), words) for name, words in conditions.items()}
    taken: dict[str, list[float]] = {name: [] for name in rewards}
    for _ in range(ROUNDS + 1):
        for name, reward in rewards.items():
            taken[name].append(seconds(reward, arguments.images))
    one, all_four = (statistics.median(times[1:]) for times in taken.values())  # the first round warms up
    print(f"{arguments.architecture}, {arguments.images} images at once, {device}, median of {ROUNDS}")
    print(f"one condition   {one:7.3f} s")
    print(f"four conditions {all_four:7.3f} s  {all_four / one:.2f} times as long (at most {LIMIT})")


def write(folder: Path, architecture: str) -> Path:
    """A folder with networks of the published sizes whose weights mean nothing."""
    config = get_model_config(architecture)
    assert config is not None
    torch.manual_seed(0)
    fusion = {"layers": 4, "heads": 16}
    tensors = {
        WEIGHTS: CLIP(**config).state_dict(),
        FUSION: Fusion(config["embed_dim"], **fusion).state_dict(),
    }
    write_network(folder, tensors, {CONFIG: {"model_cfg": config, FUSION_CONFIG: fusion}})
    return folder


@torch.no_grad()
def seconds(reward: MPS, count: int) -> float:
    """One call, each image with a prompt of its own."""
    size = reward.network.image.size
    pixels = reward.network.cast(torch.rand(count, 3, size, size))
    start = time.perf_counter()
    reward.score_pixels(pixels, [f"a picture of {number}" for number in range(count)]).tolist()
    return time.perf_counter() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mps", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--architecture", default="ViT-H-14", help="a configuration of open_clip")
    parser.add_argument("--images", type=int, default=8, help="how many at once")
    return parser


if __name__ == "__main__":
    main()
