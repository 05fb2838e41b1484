"""`align score` on files beside one picture at a time, and beside the bare network on preprocessed pixels.

python -m benchmarks.score

The network has the size of HPS v2.1 (CLIP ViT-H/14) and random weights. All three score the same pictures: `one at a
time` opens, preprocesses and encodes each picture and its prompt by itself, as the published packages do; `bare` is
the two towers on pixels and tokens that are there, in the batches that `align score` makes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP, get_model_config
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms.functional import to_tensor

from align.device import pick_device, pick_dtype, set_threads
from align.log import Log
from recipes.image_texts import Captions
from recipes.images import find_items
from recipes.score import score
from recipes.scoring import Engine
from rewards.clip import CONFIG, WEIGHTS, unit
from rewards.hps_v2 import HPSv2

ARCHITECTURE = "ViT-H-14"
SIDE_PX = 512
ROUNDS_ON_CPU, ROUNDS_ON_GPU = 1, 3
"""A CPU takes minutes for one."""
ON_CPU, ON_GPU = {"one at a time": 1.05, "bare": 0.9}, {"one at a time": 5.0, "bare": 0.9}
"""How many times as fast ours must be."""
IMAGES_ON_CPU, IMAGES_ON_GPU = 32, 2048
BATCH_ON_CPU, BATCH_ON_GPU = 16, 64


def main() -> None:
    """Print images a second, and the ratio of ours to both."""
    arguments = _parser().parse_args()
    device = pick_device(arguments.device)
    set_threads()
    with tempfile.TemporaryDirectory() as place:
        is_cpu = device.type == "cpu"
        folder, count = Path(place), arguments.images or (IMAGES_ON_CPU if is_cpu else IMAGES_ON_GPU)
        draw(folder / "images", count)
        reward = network(folder / "network", arguments.architecture, device)
        bare(reward, folder, 0, 1, most=1)  # the first call of all is slower
        variants = {"ours": ours, "one at a time": one_at_a_time, "bare": bare}
        taken: dict[str, list[float]] = {name: [] for name in variants}
        rounds = ROUNDS_ON_CPU if is_cpu else ROUNDS_ON_GPU
        for number in range(rounds):
            for name, variant in variants.items():
                taken[name].append(variant(reward, folder, number, BATCH_ON_CPU if is_cpu else BATCH_ON_GPU))
    print(f"{arguments.architecture}, {count} images of {SIDE_PX} pixels, {device}, best of {rounds}")
    seconds = {name: min(times) for name, times in taken.items()}
    for name, best in seconds.items():
        limit = (ON_CPU if is_cpu else ON_GPU).get(name)
        ratio = f"ours is {best / seconds['ours']:.2f} times as fast (at least {limit})" if limit else ""
        print(f"{name:14} {count / best:8.2f} images a second  {ratio}")


def draw(folder: Path, count: int) -> None:
    """Pictures that differ, as PNG, each with a prompt of its own."""
    folder.mkdir()
    for index in range(count):
        small = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE_PX, SIDE_PX)).save(folder / f"{index:05d}.png")
    (folder.parent / "prompts.txt").write_text("".join(f"a picture of {index}\n" for index in range(count)))


def network(folder: Path, architecture: str, device: torch.device) -> HPSv2:
    """A reward of the published size, from files, whose weights mean nothing."""
    config = get_model_config(architecture)
    assert config is not None
    torch.manual_seed(0)
    folder.mkdir()
    save_file(CLIP(**config).state_dict(), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config}))
    return HPSv2(folder, device, pick_dtype(device))


def ours(reward: HPSv2, folder: Path, number: int, batch: int) -> float:
    """Everything that `align score` does from the folder to the file of scores."""
    device, out = reward.network.scale.device, folder / f"scores-{number}"
    start = time.perf_counter()
    items = find_items([str(folder / "images")], Captions(file=folder / "prompts.txt"))
    with Log(out) as log:
        scores = score(items, Engine("hps", reward, device, batch), out, log, Accelerator(cpu=device.type == "cpu"))
    assert scores.isfinite().all()
    return time.perf_counter() - start


@torch.no_grad()
def one_at_a_time(reward: HPSv2, folder: Path, number: int, batch: int) -> float:
    """The loop of the published packages, on the same network."""
    del number, batch
    clip, device = reward.network, reward.network.scale.device
    start = time.perf_counter()
    for path, prompt in zip(_images(folder), _prompts(folder), strict=True):
        with Image.open(path) as image:
            pixels = to_tensor(image.convert("RGB"))
        pixels = functional.resize(pixels, [clip.image.size] * 2, InterpolationMode.BICUBIC, antialias=False)
        pixels = functional.normalize(pixels, list(clip.image.mean), list(clip.image.std))
        seen = clip.encode_pixels(pixels[None].to(device))
        _ = (seen @ unit(clip.model.encode_text(clip.tokenize([prompt]).to(device))).T).item()
    return time.perf_counter() - start


@torch.no_grad()
def bare(reward: HPSv2, folder: Path, number: int, batch: int, most: int | None = None) -> float:
    """Both towers on what is there: no file, no preprocessing, no tokenizer."""
    del number
    clip, device = reward.network, reward.network.scale.device
    tokens = clip.tokenize(_prompts(folder)[:most]).to(device)
    pixels = torch.rand(len(tokens), 3, clip.image.size, clip.image.size)
    pixels = clip.cast(pixels)
    start = time.perf_counter()
    for place in range(0, len(tokens), batch):
        seen = unit(clip.model.encode_image(pixels[place : place + batch]))
        read = unit(clip.model.encode_text(tokens[place : place + batch]))
        _ = (seen * read).sum(1).tolist()
    return time.perf_counter() - start


def _images(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def _prompts(folder: Path) -> list[str]:
    return (folder / "prompts.txt").read_text().splitlines()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a configuration of open_clip")
    parser.add_argument("--images", type=int, default=0, help="how many; 32 on a CPU, 2,048 on a GPU if left out")
    return parser


if __name__ == "__main__":
    main()
