"""`python -m sandbox.build NAME`: train a model that ships with the sandbox, from nothing, seeded and resumable.

The order is clip, sd, hps, hps2, rahf; each needs those before it, and what their training leaves in `sandbox/.build`.
Delete that folder before a rebuild: what it holds is not made again. To continue after an interruption, or after the
budget is spent, run the same command again.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from open_clip import CLIP
from torch import Tensor

from align.device import pick_device, set_threads
from align.families.load import load_model
from align.state import atomic_path
from rewards.clip import load_clip
from rewards.metrics import choice_accuracy
from sandbox.annotators import choices
from sandbox.build import autoencoder, clip, denoiser, hps, rahf
from sandbox.build.card import write_card
from sandbox.build.pictures import draw_pictures
from sandbox.build.rich import Rich, annotate, join
from sandbox.weights import NAMES, WEIGHTS
from sandbox.world import Split, sample_captions

SCRATCH = Path(__file__).parents[1] / ".build"
POOL = SCRATCH / "pictures"
STEPS = {
    "autoencoder": 2400,
    "clip": 2400,
    "denoiser": 4500,
    "joint": 3000,
    "outlines": 2400,
    "flaws": 2500,
    "rendered": 2000,
    "generated": 3500,
    "captions": 1800,
    "feedback": 7500,
}
GROUPS = {"rendered": 3000, "generated": 1000, "held out": 40}


class BudgetSpentError(Exception):
    """The time given on the command line is over."""


def main() -> int:
    """Train what the command line names, within its budget."""
    arguments = _parser().parse_args()
    set_threads()
    device = pick_device(arguments.device)
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * arguments.budget_minutes)
    try:
        BUILDERS[arguments.name](SCRATCH / arguments.name, Accelerator(cpu=device.type == "cpu"))
    except BudgetSpentError:
        print(f"The budget of {arguments.budget_minutes:g} minutes is spent. Run the same command again to continue.")
        return 1
    print(f"{WEIGHTS / arguments.name} is written.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.build", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="what to train")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="stop after this long; 0 means never")
    return parser


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise BudgetSpentError


def build_clip(folder: Path, accelerator: Accelerator) -> None:
    """The CLIP, and with it the tokenizer and the text tower of everything else."""
    model = clip.build_clip(folder, accelerator, STEPS["clip"]).cpu()
    with atomic_path(WEIGHTS / "clip") as temporary:
        clip.save_clip(model, temporary)
        held_out = clip.draw_groups(250, "test", seed=102)
        write_card(temporary, {"clip": folder}, {"fact accuracy (1 of 4)": clip.fact_accuracy(model, held_out)})


def build_sd(folder: Path, accelerator: Accelerator) -> None:
    """The Stable Diffusion pipeline: autoencoder, then denoiser on its latents, then that and the text tower."""
    vae = _finished_autoencoder(folder / "autoencoder", accelerator)
    text_encoder = denoiser.text_encoder_of(load_clip(WEIGHTS / "clip", torch.device("cpu")).model)
    model = denoiser.Conditioned(denoiser.new_denoiser(), text_encoder)
    for phase in denoiser.PHASES:
        model.text_encoder.requires_grad_(phase.joint)
        denoiser.finish(model, folder / phase.name, vae, phase, STEPS[phase.name], accelerator)
    held_out = draw_pictures(256, "test", 0.5, seed=103)
    psnr = autoencoder.peak_signal_to_noise(vae, held_out.images(np.arange(256)))
    with atomic_path(WEIGHTS / "sd") as temporary:
        denoiser.save_pipeline(temporary, vae, model.text_encoder, model.unet)
        phases = {name: folder / name for name in ("autoencoder", *(phase.name for phase in denoiser.PHASES))}
        write_card(temporary, phases, {"autoencoder PSNR (dB)": psnr})


def _finished_autoencoder(folder: Path, accelerator: Accelerator) -> AutoencoderKL:
    if not (folder / "final").exists():
        model = autoencoder.build_autoencoder(folder, accelerator, STEPS["autoencoder"]).cpu()
        with atomic_path(folder / "final") as temporary:
            model.save_pretrained(temporary)
    return AutoencoderKL.from_pretrained(folder / "final").requires_grad_(False).eval()


def build_hps(name: str, seed: int) -> Callable[[Path, Accelerator], None]:
    """A builder of a preference score; those of two seeds ask other people about other pictures of the model."""

    def build(folder: Path, accelerator: Accelerator) -> None:
        base = load_clip(WEIGHTS / "clip", torch.device("cpu")).model
        device = accelerator.device
        stages = [
            hps.Stage("rendered", [_rendered], STEPS["rendered"]),
            hps.Stage("generated", [partial(_generated, device, seed), _rendered], STEPS["generated"]),
        ]
        model = hps.build_hps(folder, base, stages, seed, accelerator).cpu()
        with atomic_path(WEIGHTS / name) as temporary:
            clip.save_clip(model, temporary)
            quality = {"choice accuracy (1 of 4)": _accuracy(model, _held_out(device), seed)}
            write_card(temporary, {stage.name: folder / stage.name for stage in stages}, quality)

    return build


def build_rahf(folder: Path, accelerator: Accelerator) -> None:
    """The critic, on feedback about the pictures that the preference scores were tuned on; the better of two forms.

    Both are kept as rewards in `sandbox/.build/rahf/FORM/reward`.
    """
    pretrained = rahf.pretrain(folder / "captions", STEPS["captions"], accelerator)
    people = feedback(folder, accelerator.device)
    forms = {
        form: rahf.build(folder / form, pretrained, people, form, STEPS["feedback"], accelerator).cpu()
        for form in rahf.FORMS
    }
    qualities = {form: rahf.quality(network, people.dev) for form, network in forms.items()}
    for form, network in forms.items():
        with atomic_path(folder / form / "reward") as temporary:
            rahf.save_reward(network, temporary)
    best = max(qualities, key=lambda form: sum(qualities[form].values()))
    with atomic_path(WEIGHTS / "rahf") as temporary:
        rahf.save(forms[best], temporary)
        figures = {f"{form}: {name}": value for form, found in qualities.items() for name, value in found.items()}
        write_card(temporary, {name: folder / name for name in ("captions", best)}, figures)


def feedback(folder: Path, device: torch.device) -> rahf.Feedback:
    """What people said of the pictures to learn from, and of pictures of other captions."""
    drawn = join([_feedback(folder, _generated(device, seed), seed) for seed in (5, 6, 10, 11)])
    return rahf.Feedback(drawn, _feedback(folder, _rendered(), seed=8), _feedback(folder, _held_out(device), seed=7))


def _feedback(folder: Path, pictures: hps.Pictures, seed: int) -> Rich:
    texts = [text for text in pictures.captions for _ in range(pictures.pixels.shape[1])]
    return annotate(folder / f"people-{seed}.safetensors", pictures.pixels.flatten(0, 1), texts, seed)


def _rendered() -> hps.Pictures:
    vae: Any = AutoencoderKL.from_pretrained(WEIGHTS / "sd" / "vae").requires_grad_(False).eval()

    def through(images: Tensor) -> Tensor:
        return vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5

    path = POOL / "rendered.safetensors"
    return hps.render_pictures(path, GROUPS["rendered"], "train", through, flawed=0.65, seed=5)


def _generated(device: torch.device, seed: int) -> hps.Pictures:
    return _drawn("generated", device, "train", seed)


def _held_out(device: torch.device) -> hps.Pictures:
    return _drawn("held out", device, "dev", seed=7)


def _drawn(name: str, device: torch.device, split: Split, seed: int) -> hps.Pictures:
    texts, path = sample_captions(np.random.default_rng(seed), split, GROUPS[name]), POOL / f"{name}-{seed}.safetensors"
    return hps.generate_pictures(path, lambda: load_model(str(WEIGHTS / "sd"), device), texts, n=8, seed=seed)


def _accuracy(model: CLIP, pictures: hps.Pictures, seed: int) -> float:
    scores = pictures.scores.reshape(-1, hps.SHOWN, pictures.scores.shape[-1])
    cosines = hps.group_cosines(model, pictures).reshape(-1, hps.SHOWN)
    chosen = torch.from_numpy(choices(scores, seed))
    return float(np.mean([choice_accuracy(cosines, answers) for answers in chosen.T]))


BUILDERS = {
    "clip": build_clip,
    "sd": build_sd,
    "hps": build_hps("hps", 5),
    "hps2": build_hps("hps2", 6),
    "rahf": build_rahf,
}

if __name__ == "__main__":
    sys.exit(main())
