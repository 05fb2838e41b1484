"""The sandbox's human preference scores: its CLIP tuned on which of four pictures people chose (arXiv 2303.14420).

The people are simulated, and asked anew at every step. First they see rendered scenes with and without flaws, through
the autoencoder, then pictures of the sandbox's own Stable Diffusion, which is what the score will judge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from align.generate import image_seed
from align.log import Log
from align.model import Sampling, TextToImage
from align.samples import prompt_id
from align.state import atomic_path
from align.train import TrainSettings, train
from rewards.training.choice import choice_loss
from sandbox.annotators import ANNOTATORS, choose, scores_of
from sandbox.build.clip import image_normalised, tokenize
from sandbox.build.pictures import to_bytes
from sandbox.flaws import random_flaw
from sandbox.measure import measure
from sandbox.world import Split, caption, lay_out, render, sample_spec

SHOWN = 4
"""Pictures shown for one prompt, as most often in the paper's data."""
GROUPS_PER_STEP = 20
NUM_INFERENCE_STEPS = 12


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures of one prompt each, and what an annotator sees of them (see `scores_of`)."""

    pixels: UInt8[Tensor, "group n 3 64 64"]
    captions: list[str]
    scores: Float[np.ndarray, "group n 3"]


def build_hps(
    folder: Path, clip: CLIP, stages: list[tuple[str, Pictures, int]], seed: int, accelerator: Accelerator
) -> CLIP:
    """Tune a CLIP in `folder` (resumable) on the pictures of each named stage, for its number of steps."""
    clip = clip.to(accelerator.device).requires_grad_(True)
    for name, pictures, steps in stages:
        settings = TrainSettings(
            max_train_steps=steps,
            learning_rate=5e-4,
            lr_scheduler="cosine",
            lr_warmup_steps=min(100, steps // 5),
            adam_beta2=0.98,
            adam_weight_decay=0.05,
            ema_decay=0.99,
            checkpointing_steps=100,
            seed=seed,
        )
        stage = folder / name
        train(clip, _batches(pictures, seed, accelerator.device), _loss, settings, stage, Log(stage), accelerator)
    return clip


def _batches(pictures: Pictures, seed: int, device: torch.device) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Show some pictures of some prompts to random people; a pure function of the step."""
    tokens, available = tokenize(pictures.captions), pictures.pixels.shape[1]

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = np.random.default_rng((seed, step))
        groups = generator.choice(len(tokens), size=GROUPS_PER_STEP, replace=False)
        shown = np.stack([generator.permutation(available)[:SHOWN] for _ in groups])
        people = generator.integers(len(ANNOTATORS), size=GROUPS_PER_STEP)
        seen = zip(pictures.scores[groups[:, None], shown], people, strict=True)
        chosen = [choose(scores, ANNOTATORS[person], generator) for scores, person in seen]
        images = pictures.pixels[groups[:, None], shown].to(device).float() / 255
        return images, tokens[groups].to(device), torch.tensor(chosen, device=device)

    return batch


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
    del generator
    images, tokens, chosen = batch
    image_features, text_features, scale = model(image_normalised(images.flatten(0, 1)), tokens)
    cosines = (image_features.unflatten(0, chosen.shape + (-1,)) * text_features[:, None]).sum(-1)
    return choice_loss(cosines, chosen, scale.clamp(max=100).log())


# --- what people are shown ------------------------------------------------------------------------------------------


def render_pictures(
    path: Path, groups: int, split: Split, through: Callable[[Tensor], Tensor], flawed: float, seed: int
) -> Pictures:
    """Groups of rendered scenes, each flawed with probability `flawed`, seen `through` the autoencoder."""
    generator = np.random.default_rng(seed)
    captions: list[str] = []
    drawn: list[NDArray[np.uint8]] = []
    for _ in range(groups):
        spec = sample_spec(generator, split)
        captions.append(caption(spec))
        for _ in range(SHOWN):
            scene = lay_out(spec, generator)
            bad = generator.random() < flawed
            drawn.append(to_bytes(random_flaw(scene, generator).image if bad else render(scene)))
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    return _kept(path, captions, lambda: torch.cat([_bytes(through(chunk / 255)) for chunk in images.split(64)]))


def generate_pictures(
    path: Path,
    model: TextToImage,
    captions: list[str],
    n: int,
    seed: int,
    guidance_scales: tuple[float, ...] = (2.0, 3.0, 5.0),
) -> Pictures:
    """The model's own pictures, `n` of each caption; guidance varies by caption, as people's settings do."""

    def draw(index: int) -> Tensor:
        texts = [text for text in captions[index : index + 8] for _ in range(n)]
        seeds = [image_seed(seed, prompt_id(text), number % n) for number, text in enumerate(texts)]
        scale = guidance_scales[index // 8 % len(guidance_scales)]
        return _bytes(model.sample(texts, seeds, Sampling(NUM_INFERENCE_STEPS, scale)).cpu())

    return _kept(path, captions, lambda: torch.cat([draw(index) for index in range(0, len(captions), 8)]))


def _kept(path: Path, captions: list[str], draw: Callable[[], Tensor]) -> Pictures:
    """Draw the pictures and measure them, once: both are kept in the file."""
    if not path.exists():
        pixels = draw().unflatten(0, (len(captions), -1)).contiguous()
        scores = torch.from_numpy(measured(pixels, captions))
        with atomic_path(path) as temporary:
            save_file({"pixels": pixels, "scores": scores}, temporary)
    tensors = load_file(path)
    return Pictures(tensors["pixels"], captions, tensors["scores"].numpy())


def measured(pixels: UInt8[Tensor, "group n 3 64 64"], captions: list[str]) -> Float[np.ndarray, "group n 3"]:
    """What an annotator sees of every picture."""
    images = pixels.permute(0, 1, 3, 4, 2).numpy() / 255
    groups = zip(images, captions, strict=True)
    return np.stack([scores_of([measure(image, text) for image in group]) for group, text in groups])


def _bytes(images: Float[Tensor, "batch 3 h w"]) -> UInt8[Tensor, "batch 3 h w"]:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def group_cosines(model: CLIP, pictures: Pictures) -> Float[Tensor, "group n"]:
    """The score of every picture of every group."""
    texts = normalize(model.encode_text(tokenize(pictures.captions)), dim=-1)
    images = pictures.pixels.flatten(0, 1).float() / 255
    chunks = [normalize(model.encode_image(image_normalised(chunk)), dim=-1) for chunk in images.split(256)]
    return (torch.cat(chunks).unflatten(0, (-1, pictures.pixels.shape[1])) * texts[:, None]).sum(-1)
