"""A training step of ours beside a plain loop that encodes images and captions every step, and beside the bare network.

python -m benchmarks.train

The three take turns, each in a process of its own (for its peak memory), on the same model, LoRA and batch size. `bare`
is forward and backward of the denoiser with its LoRA on tensors that are there, without optimizer, data or log.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from align import lora
from align.device import pick_device, pick_dtype, set_threads
from align.families.load import load_model
from align.finetune import LoraTraining, train_lora
from align.log import Log, read_metrics
from align.losses import denoising_mse
from align.model import TextToImage
from align.samples import SampleStore
from align.train import TrainSettings
from recipes.models import resolve_model

ROUNDS, WARM_UP, STEPS, RANK = 3, 3, 12, 16
LIMITS = {"encoding every step": 1.2, "bare": 0.9}
"""How many times as fast ours must be."""

Result = tuple[list[float], float]
"""Seconds of each step, and the peak memory in MiB."""


def main() -> None:
    """Print seconds a step, peak memory, and the ratio of ours to both."""
    arguments = _parser().parse_args()
    variants = {"ours": ours, "encoding every step": encoding, "bare": bare}
    results: dict[str, list[Result]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                results[name].append(pool.submit(variant, arguments).result())
    seconds = {name: statistics.median(s for times, _ in found for s in times) for name, found in results.items()}
    print(f"{arguments.model}, batch {arguments.batch_size}, LoRA of rank {RANK}, {pick_device(arguments.device)}")
    for name, taken in seconds.items():
        memory = max(peak for _, peak in results[name])
        ratio = (
            f"ours is {taken / seconds['ours']:.2f} times as fast (at least {LIMITS[name]})" if name in LIMITS else ""
        )
        print(f"{name:20} {taken:7.3f} s a step  {memory:7,.0f} MiB  {ratio}")


def ours(arguments: argparse.Namespace) -> Result:
    """Steps of `train_lora`, timed by its own record."""
    model = _model(arguments)
    loop = TrainSettings(max_train_steps=WARM_UP + STEPS, learning_rate=1e-4)
    settings = LoraTraining(RANK, RANK, None, arguments.batch_size, 0.0, 0, loop)
    with tempfile.TemporaryDirectory() as folder, Log(Path(folder)) as log:
        rows = _store(Path(folder), model, arguments.batch_size).rows()
        precision, cpu = arguments.mixed_precision, model.device.type == "cpu"
        train_lora(model, rows, [], settings, Path(folder), log, Accelerator(mixed_precision=precision, cpu=cpu))
        times = [datetime.fromisoformat(row["time"]) for row in read_metrics(Path(folder))]
    return [(b - a).total_seconds() for a, b in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)], _peak(model)


def encoding(arguments: argparse.Namespace) -> Result:
    """The loop of a training script without a cache: everything is encoded in every step."""
    model = _model(arguments)
    optimizer = _inject(model)
    prompts = [f"a picture of {number}" for number in range(arguments.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder), model, arguments.batch_size)
        images = store.load(store.rows()).to(model.device)

    def step() -> None:
        with torch.no_grad():
            latents, embeddings = model.encode_images(images), model.encode_prompts(prompts)
        _loss(model, latents, embeddings, arguments.mixed_precision).backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _timed(step, model)


def bare(arguments: argparse.Namespace) -> Result:
    """Forward and backward alone."""
    model = _model(arguments)
    optimizer = _inject(model)
    with torch.no_grad():
        side = model.resolution
        latents = model.encode_images(torch.rand(arguments.batch_size, 3, side, side, device=model.device))
        embeddings = model.encode_prompts([f"a picture of {number}" for number in range(arguments.batch_size)])

    def step() -> None:
        _loss(model, latents, embeddings, arguments.mixed_precision).backward()
        optimizer.zero_grad()

    return _timed(step, model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--model", default="sandbox", help="a folder, a repository on the Hub, or `sandbox`")
    parser.add_argument("--batch_size", type=int, default=32, help="images a step")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--mixed_precision", default="no", choices=["no", "fp16", "bf16"])
    return parser


def _model(arguments: argparse.Namespace) -> TextToImage:
    set_threads()
    device = pick_device(arguments.device)
    return load_model(resolve_model(arguments.model), device, pick_dtype(device, arguments.mixed_precision))


def _store(folder: Path, model: TextToImage, images: int) -> SampleStore:
    """Images of noise: what they show does not change the time."""
    store = SampleStore(folder / "samples")
    store.claim({"images": images})
    rows = [store.row(number, f"a picture of {number}", 0, number, "0" * 16) for number in range(images)]
    store.write(rows, torch.rand(images, 3, model.resolution, model.resolution))
    store.seal(rows)
    return store


def _inject(model: TextToImage) -> torch.optim.Optimizer:
    lora.inject(model.denoiser, RANK, RANK, model.lora_target_modules, seed=0)
    model.denoiser.train()
    return torch.optim.AdamW([p for p in model.denoiser.parameters() if p.requires_grad], lr=1e-4)


def _loss(model: TextToImage, latents: Tensor, embeddings: Tensor, mixed_precision: str) -> Tensor:
    dtype = pick_dtype(model.device, mixed_precision)
    with torch.autocast(model.device.type, dtype, enabled=mixed_precision != "no"):
        noise = torch.randn_like(latents)
        t = torch.randint(model.num_train_timesteps, (len(latents),), device=model.device)
        prediction = model.predict(model.add_noise(latents, noise, t), t, embeddings)
        return denoising_mse(prediction, model.target(latents, noise, t))


def _timed(step: Callable[[], None], model: TextToImage) -> Result:
    times: list[float] = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        step()
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return times[WARM_UP:], _peak(model)


def _peak(model: TextToImage) -> float:
    """Peak memory: the accelerator's, else that of the process."""
    if model.device.type != "cpu":
        return torch.accelerator.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on a Mac, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    main()
