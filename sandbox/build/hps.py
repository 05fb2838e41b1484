"""The sandbox's human preference scores: its CLIP tuned on which of four pictures people chose (arXiv 2303.14420).

The people are simulated, and asked anew at every step. First they see rendered scenes with and without flaws, through
the autoencoder, then also pictures of the sandbox's own Stable Diffusion, which is what the score will judge.
"""

from collections.abc import Callable, Sequence
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
from align.state import atomic_path
from align.train import TrainSettings, train
from rewards.training.choice import choice_loss
from sandbox.annotators import ANNOTATORS, choose, scores_of
from sandbox.build.clip import image_normalised, settle, tokenize
from sandbox.build.pictures import to_bytes
from sandbox.build.symmetry import Symmetry
from sandbox.flaws import random_flaw
from sandbox.measure import measure
from sandbox.world import Split, caption, captions, lay_out, parse, render, sample_spec, split_of

SHOWN = 4
"""Pictures shown for one prompt, as most often in the paper's data."""
PICTURES_PER_STEP = 80
QUESTIONS = 16
"""How often a step asks about the pictures of one prompt: each time another person about another four of them."""
LOGIT_SCALE = 10.0
"""Where tuning starts. A CLIP is much surer of its cosines than people are of their choices."""
NUM_INFERENCE_STEPS = 12


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures of one prompt each, and what an annotator sees of them (see `scores_of`)."""

    pixels: UInt8[Tensor, "group n 3 64 64"]
    captions: list[str]
    scores: Float[np.ndarray, "group n 3"]


@dataclass(frozen=True)
class Stage:
    """Pictures that people are asked about, one source after the other, for a number of steps.

    The first source is what the score will judge: the statistics of batch normalisation are measured on it.
    """

    name: str
    sources: Sequence[Callable[[], Pictures]]
    steps: int


def build_hps(folder: Path, clip: CLIP, stages: Sequence[Stage], seed: int, accelerator: Accelerator) -> CLIP:
    """Tune a CLIP in `folder` (resumable), stage by stage."""
    clip = clip.to(accelerator.device).requires_grad_(True)
    with torch.no_grad():
        clip.logit_scale.fill_(np.log(LOGIT_SCALE))
    for stage in stages:
        settings = TrainSettings(
            max_train_steps=stage.steps,
            learning_rate=4e-4,
            lr_scheduler="cosine",
            lr_warmup_steps=50,
            adam_beta2=0.98,
            adam_weight_decay=0.05,
            ema_decay=0.99,
            checkpointing_steps=100,
            seed=seed,
        )
        place = folder / stage.name
        asked = [_batches(draw(), seed, accelerator.device) for draw in stage.sources]
        train(clip, _in_turn(asked), _loss, settings, place, Log(place), accelerator)
        settle(clip, lambda step, first=asked[0]: first(step).images.flatten(0, 1))
    return clip


@dataclass(frozen=True)
class Asked:
    """Pictures of some prompts, the questions (which of them were shown) and the answers (which of these was best)."""

    images: Float[Tensor, "group n 3 64 64"]
    tokens: Int[Tensor, "group 32"]
    shown: Int[Tensor, "group question four"]
    chosen: Int[Tensor, "group question"]


def _batches(pictures: Pictures, seed: int, device: torch.device) -> Callable[[int], Asked]:
    """Show pictures, under a symmetry of the world, to random people; a pure function of the step."""
    texts = captions("train")
    tokens, row = tokenize(texts), {text: index for index, text in enumerate(texts)}
    n = pictures.pixels.shape[1]

    def batch(step: int) -> Asked:
        generator = np.random.default_rng((seed, step))
        groups = generator.choice(len(pictures.captions), size=PICTURES_PER_STEP // n, replace=False)
        moved = [_moved(pictures.captions[group], pictures.pixels[group], generator) for group in groups]
        shown = np.stack([[generator.permutation(n)[:SHOWN] for _ in range(QUESTIONS)] for _ in groups])
        people = zip(pictures.scores[groups], shown, strict=True)
        chosen = [[_ask(scores[four], generator) for four in questions] for scores, questions in people]
        return Asked(
            torch.stack([pixels for _, pixels in moved]).to(device).float() / 255,
            tokens[[row[text] for text, _ in moved]].to(device),
            torch.from_numpy(shown).to(device),
            torch.tensor(chosen, device=device),
        )

    return batch


def _in_turn(sources: Sequence[Callable[[int], Asked]]) -> Callable[[int], Asked]:
    return lambda step: sources[step % len(sources)](step)


def _moved(text: str, pixels: Tensor, generator: np.random.Generator) -> tuple[str, Tensor]:
    """The pictures and their caption under a random symmetry, unless that leads out of the training split."""
    symmetry = Symmetry.draw(generator)
    moved = caption(symmetry.spec(parse(text)))
    return (moved, symmetry.pixels(pixels)) if split_of(moved) == "train" else (text, pixels)


def _ask(scores: NDArray[np.float64], generator: np.random.Generator) -> int:
    return choose(scores, ANNOTATORS[generator.integers(len(ANNOTATORS))], generator)


def _loss(model: nn.Module, asked: Asked, generator: torch.Generator) -> Float[Tensor, ""]:
    del generator
    image_features, text_features, scale = model(image_normalised(asked.images.flatten(0, 1)), asked.tokens)
    cosines = (image_features.unflatten(0, asked.images.shape[:2]) * text_features[:, None]).sum(-1)
    seen = cosines[:, None].expand(-1, asked.shown.shape[1], -1).gather(2, asked.shown)
    return choice_loss(seen.flatten(0, 1), asked.chosen.flatten(), scale.clamp(max=100).log())


# --- what people are shown ------------------------------------------------------------------------------------------


def render_pictures(
    path: Path, groups: int, split: Split, through: Callable[[Tensor], Tensor], flawed: float, seed: int
) -> Pictures:
    """Groups of rendered scenes, each flawed with probability `flawed`, seen `through` the autoencoder."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    drawn: list[NDArray[np.uint8]] = []
    for _ in range(groups):
        spec = sample_spec(generator, split)
        texts.append(caption(spec))
        for _ in range(SHOWN):
            scene = lay_out(spec, generator)
            bad = generator.random() < flawed
            drawn.append(to_bytes(random_flaw(scene, generator).image if bad else render(scene)))
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    return _kept(path, texts, lambda: torch.cat([_bytes(through(chunk / 255)) for chunk in images.split(64)]))


def generate_pictures(
    path: Path,
    load: Callable[[], TextToImage],
    prompts: list[str],
    n: int,
    seed: int,
) -> Pictures:
    """A model's pictures, `n` of each caption, without guidance: they differ more."""

    def draw(model: TextToImage, index: int) -> Tensor:
        texts = [text for text in prompts[index : index + 8] for _ in range(n)]
        seeds = [image_seed(seed, prompt_id(text), number % n) for number, text in enumerate(texts)]
        return _bytes(model.sample(texts, seeds, Sampling(NUM_INFERENCE_STEPS, guidance_scale=1.0)).cpu())

    def draw_all() -> Tensor:
        model = load()
        return torch.cat([draw(model, index) for index in range(0, len(prompts), 8)])

    return _kept(path, prompts, draw_all)


def _kept(path: Path, texts: list[str], draw: Callable[[], Tensor]) -> Pictures:
    """Draw the pictures and measure them, once: both are kept in the file."""
    if not path.exists():
        pixels = draw().unflatten(0, (len(texts), -1)).contiguous()
        scores = torch.from_numpy(measured(pixels, texts))
        with atomic_path(path) as temporary:
            save_file({"pixels": pixels, "scores": scores}, temporary)
    tensors = load_file(path)
    if len(tensors["pixels"]) != len(texts):
        counts = f"{len(tensors['pixels'])} captions where {len(texts)} belong"
        raise ValueError(f"{path} holds pictures of {counts}: they are of another build. Delete it and run again.")
    return Pictures(tensors["pixels"], texts, tensors["scores"].numpy())


def measured(pixels: UInt8[Tensor, "group n 3 64 64"], texts: list[str]) -> Float[np.ndarray, "group n 3"]:
    """What an annotator sees of every picture."""
    images = pixels.permute(0, 1, 3, 4, 2).numpy() / 255
    groups = zip(images, texts, strict=True)
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
