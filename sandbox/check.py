"""`python -m sandbox.check`: measure, now and from the shipped files, every number that the sandbox promises.

Prints a line a number, writes a picture of samples with their captions and gold readings, and exits 0 only when all
numbers hold.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.stats import rankdata
from torch import Tensor

from align.device import pick_device, set_threads
from align.families.load import load_model
from align.generate import image_seed
from align.model import Sampling, TextToImage
from align.samples import prompt_id
from rewards.base import Reward
from rewards.load import load_reward
from sandbox import flaws, world
from sandbox.annotators import choices, scores_of
from sandbox.build.autoencoder import peak_signal_to_noise
from sandbox.build.pictures import draw_pictures
from sandbox.measure import Gold, measure
from sandbox.weights import WEIGHTS

SAMPLING = Sampling(num_inference_steps=12, guidance_scale=1.0)
PROMPTS, SAMPLES = 84, 16
SHOWN = 4
"""Pictures that a simulated person chooses from; 84 prompts x 4 such groups x 3 people are 1,008 choices."""


@dataclass(frozen=True)
class Number:
    """A measured number and the range that it must lie in."""

    name: str
    value: float
    low: float = -inf
    high: float = inf

    @property
    def holds(self) -> bool:
        """Whether the number is in its range."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        bounds = [f">= {self.low:g}"] * (self.low > -inf) + [f"<= {self.high:g}"] * (self.high < inf)
        return f"{'ok  ' if self.holds else 'FAIL'} {self.name:<66} {self.value:>10.4f}  {' and '.join(bounds)}"


def main() -> int:
    """Measure all, print, write the picture; the exit code is 0 where every number holds."""
    arguments = _parser().parse_args()
    set_threads()
    device = pick_device(arguments.device)
    numbers: list[Number] = []
    for number in _all_numbers(device, arguments.picture):
        print(number, flush=True)
        numbers.append(number)
    failed = [number.name for number in numbers if not number.holds]
    print(f"{len(numbers) - len(failed)} of {len(numbers)} numbers hold; picture: {arguments.picture}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.check", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--picture", type=Path, default=Path("sandbox-check.png"), help="where the picture goes")
    return parser


def _all_numbers(device: torch.device, picture: Path) -> Iterator[Number]:
    yield from world_numbers()
    yield from file_numbers()
    samples = draw_samples(load_model(WEIGHTS / "sd", device), device)
    yield from model_numbers(samples)
    rewards = {name: load_reward(name, device) for name in ("sandbox-clip", "sandbox-hps", "sandbox-hps-2")}
    scores = {name: score(reward, samples, device) for name, reward in rewards.items()}
    yield from reward_numbers(samples, scores)
    draw(samples, scores["sandbox-hps"]).save(picture)


# --- the world and the files ----------------------------------------------------------------------------------------


def world_numbers(scenes: int = 300, per_flaw: int = 40) -> Iterator[Number]:
    """Does the gold truth agree with the renderer?"""
    generator = np.random.default_rng(1)
    yield Number("distinct captions", float(len(list(world.all_specs()))), low=10_000)
    clean = [_random_scene(generator) for _ in range(scenes)]
    right = [_measure_scene(scene, world.render(scene)).alignment == 1 for scene in clean]
    yield Number("clean scenes read correctly (share)", float(np.mean(right)), low=0.99)
    results = [_flaw_result(flaw, generator) for flaw in flaws.FLAWS for _ in range(per_flaw)]
    yield Number("flaws that lower the right score (share)", float(np.mean([low for low, _ in results])), low=0.95)
    areas = [area for _, area in results if area is not None]
    yield Number("overlap of a flaw's mask with the gold map (AUC)", float(np.mean(areas)), low=0.9)


def _random_scene(generator: np.random.Generator) -> world.Scene:
    return world.lay_out(world.sample_spec(generator, "test"), generator)


def _measure_scene(scene: world.Scene, image: world.Image) -> Gold:
    return measure(np.round(image * 255) / 255, world.caption(scene.spec))


def _flaw_result(flaw: str, generator: np.random.Generator) -> tuple[bool, float | None]:
    """Whether a flaw lowers its score, and the AUC of its mask (none where it has no place or no map)."""
    scene = _random_scene(generator)
    while not flaws.applies(flaw, scene):
        scene = _random_scene(generator)
    flawed = flaws.inject(flaw, scene, generator)
    before, after = _measure_scene(scene, world.render(scene)), _measure_scene(scene, flawed.image)
    lowered = getattr(after, flawed.score) < getattr(before, flawed.score)
    heat = {"plausibility": after.implausibility_map, "alignment": after.misalignment_map}.get(flawed.score)
    return lowered, None if heat is None or not flawed.mask.any() else area_under_curve(flawed.mask, heat)


def area_under_curve(mask: NDArray[np.bool_], heat: NDArray[np.float64]) -> float:
    """Chance that a pixel of the mask is hotter than one outside (Mann-Whitney, ties count half)."""
    ranks, inside = rankdata(heat.ravel()), mask.ravel()
    n = int(inside.sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * (inside.size - n)))


def file_numbers() -> Iterator[Number]:
    """What can be said of the files without sampling."""
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    yield Number("all weights (MB)", sum(path.stat().st_size for path in files) / 1e6, high=20)
    autoencoder = AutoencoderKL.from_pretrained(WEIGHTS / "sd" / "vae")
    scenes = draw_pictures(256, "test", flawed=0.4, seed=101)
    yield Number(
        "autoencoder PSNR on held-out scenes (dB)", peak_signal_to_noise(autoencoder, scenes.images(np.arange(256))), 28
    )


# --- the generator --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Sixteen samples of each of many held-out captions, with the gold truth about each."""

    captions: list[str]
    images: Float[Tensor, "prompt n 3 64 64"]
    golds: list[list[Gold]]

    def gold(self, name: str) -> Float[np.ndarray, "prompt n"]:
        """One gold score of every sample."""
        return np.array([[getattr(gold, name) for gold in row] for row in self.golds])


def draw_samples(model: TextToImage, device: torch.device) -> Samples:
    """Sample the shipped model on captions that it was never trained on."""
    chosen = world.sample_captions(np.random.default_rng(2), "test", PROMPTS)
    images = torch.stack([_samples_of(model, text) for text in chosen])
    golds = [[measure(_pixels(image), text) for image in row] for row, text in zip(images, chosen, strict=True)]
    return Samples(chosen, images, golds)


def _samples_of(model: TextToImage, text: str) -> Float[Tensor, "n 3 64 64"]:
    seeds = [image_seed(2, prompt_id(text), index) for index in range(SAMPLES)]
    return (model.sample([text] * SAMPLES, seeds, SAMPLING) * 255).round().cpu() / 255


def _pixels(image: Float[Tensor, "3 64 64"]) -> world.Image:
    return image.permute(1, 2, 0).double().numpy()


def model_numbers(samples: Samples) -> Iterator[Number]:
    """Is the model good and yet often wrong, and does it follow the caption?"""
    alignment = float(samples.gold("alignment").mean())
    yield Number("gold alignment of samples", alignment, 0.4, 0.8)
    for name in ("plausibility", "aesthetics", "overall"):
        yield Number(f"gold {name} of samples", float(samples.gold(name).mean()))
    others = samples.captions[1:] + samples.captions[:1]
    swapped = [measure(_pixels(row[0]), text).alignment for row, text in zip(samples.images, others, strict=True)]
    yield Number("drop of gold alignment under another caption", alignment - float(np.mean(swapped)), low=0.2)


# --- the rewards ----------------------------------------------------------------------------------------------------


def score(reward: Reward, samples: Samples, device: torch.device) -> Float[Tensor, "prompt n"]:
    """A reward's score of every sample."""
    with torch.no_grad():
        rows = [
            reward(row.to(device), [text] * SAMPLES) for row, text in zip(samples.images, samples.captions, strict=True)
        ]
    return torch.stack(rows)[:, :, 0].cpu()


def reward_numbers(samples: Samples, scores: dict[str, Float[Tensor, "prompt n"]]) -> Iterator[Number]:
    """Do the preference scores predict choices better than the CLIP they started from, and is there headroom?"""
    seen = np.concatenate([scores_of(row).reshape(-1, SHOWN, 3) for row in samples.golds])
    chosen = choices(seen, seed=2)
    right = {name: _right(values, chosen) for name, values in scores.items()}
    yield Number("held-out simulated choices", float(chosen.size), low=1000)
    for name, hits in right.items():
        yield Number(f"{name} predicts the choice (share; chance is 0.25)", float(hits.mean()))
    for name in ("sandbox-hps", "sandbox-hps-2"):
        gain = right[name] - right["sandbox-clip"]
        yield Number(f"{name} over sandbox-clip (points)", 100 * float(gain.mean()), low=8)
        yield Number(f"{name} over sandbox-clip, lower end of 95 % interval", 100 * _lower_end(gain), low=0)
        yield Number(f"best of 16 by {name}: gain in gold overall", _headroom(samples, scores[name]), low=0.08)


def _right(
    scores: Float[Tensor, "prompt n"], chosen: Int[np.ndarray, "group annotator"]
) -> Float[np.ndarray, " prompt"]:
    """Share of a prompt's choices that the highest score predicts."""
    best = scores.reshape(-1, SHOWN).argmax(1).numpy()
    return (best[:, None] == chosen).mean(1).reshape(len(scores), -1).mean(1)


def _lower_end(values: Float[np.ndarray, " prompt"]) -> float:
    """Lower end of the 95 % bootstrap interval of the mean, resampling prompts."""
    indices = np.random.default_rng(3).integers(len(values), size=(10_000, len(values)))
    return float(np.quantile(values[indices].mean(1), 0.025))


def _headroom(samples: Samples, scores: Float[Tensor, "prompt n"]) -> float:
    overall = samples.gold("overall")
    return float(
        (np.take_along_axis(overall, scores.argmax(1, keepdim=True).numpy(), 1)[:, 0] - overall.mean(1)).mean()
    )


# --- the picture ----------------------------------------------------------------------------------------------------


def draw(samples: Samples, scores: Float[Tensor, "prompt n"], rows: int = 12, zoom: int = 2) -> Image.Image:
    """Eight samples of a dozen captions, best score first; gold reads alignment, plausibility and aesthetics."""
    side, margin = world.SIZE_PX * zoom, 14
    page = Image.new("RGB", (8 * side, rows * (side + 2 * margin)), "white")
    pen = ImageDraw.Draw(page)
    for row in range(rows):
        top = row * (side + 2 * margin)
        pen.text((4, top + 1), samples.captions[row], fill="black")
        for column, index in enumerate(scores[row].argsort(descending=True).tolist()[:8]):
            _paste(page, pen, samples, row, index, (column * side, top + margin), zoom)
    return page


def _paste(
    page: Image.Image, pen: ImageDraw.ImageDraw, samples: Samples, row: int, index: int, at: Sequence[int], zoom: int
) -> None:
    pixels = (samples.images[row, index] * 255).round().byte().permute(1, 2, 0).numpy()
    side, gold = world.SIZE_PX * zoom, samples.golds[row][index]
    page.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (at[0], at[1]))
    reading = f"{gold.alignment:.2f}  {gold.plausibility:.2f}  {gold.aesthetics:.2f}"
    pen.text((at[0] + 4, at[1] + side), reading, fill="black")


if __name__ == "__main__":
    sys.exit(main())
