"""The sandbox's human preference scores: its CLIP tuned on which of four pictures people chose (arXiv 2303.14420).

The people are simulated. First they see rendered scenes with and without flaws, through the autoencoder, then pictures
of the sandbox's own Stable Diffusion, which is what the score will judge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from align.generate import image_seed
from align.log import Log
from align.model import Sampling, TextToImage
from align.samples import prompt_id
from align.state import atomic_path, read_json, write_json
from align.train import TrainSettings, train
from rewards.training.choice import choice_loss
from sandbox.annotators import ANNOTATORS, choices
from sandbox.build.clip import image_normalised, tokenize
from sandbox.build.pictures import to_bytes
from sandbox.flaws import random_flaw
from sandbox.measure import Gold, measure
from sandbox.world import Split, caption, lay_out, render, sample_spec

GROUP = 4
"""Pictures shown for one prompt, as most often in the paper's data."""
GROUPS_PER_STEP = 20
NUM_INFERENCE_STEPS = 12


@dataclass(frozen=True)
class Choices:
    """Groups of pictures of one prompt each, and which picture each annotator chose."""

    pixels: UInt8[Tensor, "group n 3 64 64"]
    captions: list[str]
    chosen: Int[np.ndarray, "group annotator"]


def build_hps(
    folder: Path, clip: CLIP, stages: list[tuple[str, Choices, int]], seed: int, accelerator: Accelerator
) -> CLIP:
    """Tune a CLIP in `folder` (resumable) on the choices of each named stage, for its number of steps."""
    clip = clip.to(accelerator.device).requires_grad_(True)
    for name, data, steps in stages:
        settings = TrainSettings(
            max_train_steps=steps,
            learning_rate=3e-4,
            lr_scheduler="cosine",
            lr_warmup_steps=min(100, steps // 5),
            adam_beta2=0.98,
            adam_weight_decay=0.05,
            ema_decay=0.99,
            checkpointing_steps=100,
            seed=seed,
        )
        stage = folder / name
        train(clip, _batches(data, seed, accelerator.device), _loss, settings, stage, Log(stage), accelerator)
    return clip


def _batches(data: Choices, seed: int, device: torch.device) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    tokens, chosen = tokenize(data.captions), torch.from_numpy(data.chosen)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = np.random.default_rng((seed, step))
        groups = generator.choice(len(tokens), size=GROUPS_PER_STEP, replace=False)
        annotator = generator.integers(len(ANNOTATORS), size=GROUPS_PER_STEP)
        images = data.pixels[groups].to(device).float() / 255
        return images, tokens[groups].to(device), chosen[groups, annotator].to(device)

    return batch


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
    del generator
    images, tokens, chosen = batch
    image_features, text_features, scale = model(image_normalised(images.flatten(0, 1)), tokens)
    cosines = (image_features.unflatten(0, chosen.shape + (-1,)) * text_features[:, None]).sum(-1)
    return choice_loss(cosines, chosen, scale.clamp(max=100).log())


# --- what people are shown ------------------------------------------------------------------------------------------


def render_choices(
    folder: Path, groups: int, split: Split, through: Callable[[Tensor], Tensor], flawed: float, seed: int
) -> Choices:
    """Groups of rendered scenes, each flawed with probability `flawed`, seen `through` the autoencoder."""
    generator = np.random.default_rng(seed)
    captions: list[str] = []
    pictures: list[NDArray[np.uint8]] = []
    for _ in range(groups):
        spec = sample_spec(generator, split)
        captions.append(caption(spec))
        for _ in range(GROUP):
            scene = lay_out(spec, generator)
            bad = generator.random() < flawed
            pictures.append(to_bytes(random_flaw(scene, generator).image if bad else render(scene)))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return _asked(
        folder, captions, lambda: torch.cat([_bytes(through(chunk / 255)) for chunk in images.split(64)]), seed
    )


def generate_choices(
    folder: Path,
    model: TextToImage,
    captions: list[str],
    seed: int,
    guidance_scales: tuple[float, ...] = (1.5, 3.0, 5.0),
) -> Choices:
    """Groups of the model's own pictures; guidance varies by group, as people's settings do."""

    def draw(start: int) -> Tensor:
        chunk = [text for text in captions[start : start + 16] for _ in range(GROUP)]
        seeds = [image_seed(seed, prompt_id(text), index % GROUP) for index, text in enumerate(chunk)]
        scale = guidance_scales[start // 16 % len(guidance_scales)]
        return _bytes(model.sample(chunk, seeds, Sampling(NUM_INFERENCE_STEPS, scale)))

    return _asked(folder, captions, lambda: torch.cat([draw(start) for start in range(0, len(captions), 16)]), seed)


def _asked(folder: Path, captions: list[str], draw: Callable[[], Tensor], seed: int) -> Choices:
    """Draw the pictures and ask the annotators, once: both are kept in `folder`."""
    path, answers = folder / "pictures.safetensors", folder / "choices.json"
    if not path.exists():
        with atomic_path(path) as temporary:
            save_file({"pixels": draw().unflatten(0, (-1, GROUP)).contiguous()}, temporary)
    pixels = load_file(path)["pixels"]
    if not answers.exists():
        write_json(answers, choices(gold_groups(pixels, captions), seed).tolist())
    return Choices(pixels, captions, np.array(read_json(answers)))


def gold_groups(pixels: UInt8[Tensor, "group n 3 64 64"], captions: list[str]) -> list[list[Gold]]:
    """The gold truth about every picture of every group."""
    images = pixels.permute(0, 1, 3, 4, 2).numpy() / 255
    return [[measure(image, text) for image in group] for group, text in zip(images, captions, strict=True)]


def _bytes(images: Float[Tensor, "batch 3 h w"]) -> UInt8[Tensor, "batch 3 h w"]:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def group_cosines(model: CLIP, data: Choices) -> Float[Tensor, "group n"]:
    """The score of every picture of every group."""
    texts = normalize(model.encode_text(tokenize(data.captions)), dim=-1)
    images = data.pixels.flatten(0, 1).float() / 255
    features = torch.cat(
        [normalize(model.encode_image(image_normalised(chunk)), dim=-1) for chunk in images.split(256)]
    )
    return (features.unflatten(0, (-1, data.pixels.shape[1])) * texts[:, None]).sum(-1)
