"""Inpainting in latent space with any denoiser: what is outside the mask is held at the original, step by step."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from align.model import Sampling

Denoise = Callable[[Tensor, Tensor], Tensor]
"""From noisy latents, scaled as the denoiser expects them, and their timestep to its prediction, guidance included."""

LMS_ORDER = 4
"""Past steps that LMSDiscreteScheduler builds on, at most."""


def repaint_latents(
    denoise: Denoise,
    scheduler: Any,
    original: Float[Tensor, "batch channels latent_h latent_w"],
    mask: Float[Tensor, "batch 1 latent_h latent_w"],
    generators: list[torch.Generator],
    noise: Float[Tensor, "batch channels latent_h latent_w"],
    strength: float,
) -> Float[Tensor, "batch channels latent_h latent_w"]:
    """Latents of a new image inside the mask and of the original outside of it, where the two are equal.

    After each step, what is outside the mask is replaced by the original, noised to the level that was reached (arXiv
    2206.02779). Between 0 and 1 the mask says from when on a place is free, as in arXiv 2306.00950: one of 0.25 takes
    part in the last quarter of the steps only, so it changes as with a quarter of the strength. The area that is
    repainted grows from step to step.

    Arguments:
        denoise: The denoiser with its prompts, see `Denoise`.
        scheduler: Set to all of its steps; its history is used up.
        original: The latents of the images.
        mask: 1 where all steps repaint, 0 where none does.
        generators: One for each image; the noise of schedulers that add some comes from them.
        noise: Of the same size as the latents, and drawn from the generators before.
        strength: The share of the steps that are run, see `last_timesteps`; 1 starts from the noise alone.
    """
    timesteps = last_timesteps(scheduler, strength)
    x_t = noise * scheduler.init_noise_sigma
    if strength < 1:
        x_t = _at_level(scheduler, original, noise, timesteps)
    for done, t in enumerate(timesteps, 1):
        prediction = denoise(scheduler.scale_model_input(x_t, t), t)
        x_t = scheduler.step(prediction, t, x_t, **step_arguments(scheduler, generators, done), return_dict=False)[0]
        left = timesteps[done:]
        if done % scheduler.order == 0 or not len(left):  # halfway through a step of second order x_t is at no level
            is_free = (mask > 0) & (mask >= len(left) / len(timesteps))
            x_t = torch.where(is_free, x_t, _at_level(scheduler, original, noise, left))
    return x_t


def _at_level(scheduler: Any, original: Tensor, noise: Tensor, left: Tensor) -> Tensor:
    """The original at the noise level of the first timestep that is left; as it is where none is."""
    return scheduler.add_noise(original, noise, left[:1].expand(len(noise))) if len(left) else original


def last_timesteps(scheduler: Any, strength: float) -> Tensor:
    """The timesteps of the last int(num_inference_steps * strength) steps, as diffusers counts them.

    The scheduler is made ready to begin there. Pseudo-linear multistep takes its second step twice, wherever it begins,
    and has no Runge-Kutta steps, which cannot begin anywhere but at the first.
    """
    steps = int(scheduler.num_inference_steps * strength)
    if type(scheduler).__name__ == "PNDMScheduler":
        scheduler.register_to_config(skip_prk_steps=True)
        scheduler.set_timesteps(scheduler.num_inference_steps, device=scheduler.timesteps.device)
        timesteps = scheduler.timesteps.unique().flip(0)[-steps:]
        return torch.cat([timesteps[:2], timesteps[1:]])
    start = (scheduler.num_inference_steps - steps) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


def step_arguments(scheduler: Any, generators: list[torch.Generator], step: int) -> dict[str, Any]:
    """What this kind of scheduler must be told at its step number `step`, from 1: whose noise, and how much history."""
    known = {"generator": generators, "order": min(step, LMS_ORDER)}
    return {name: known[name] for name in inspect.signature(scheduler.step).parameters if name in known}


def latent_mask(masks: Float[Tensor, "batch h w"], height: int, width: int) -> Float[Tensor, "batch 1 height width"]:
    """Masks at the latents' size: a latent is repainted as much as that of its pixels that is repainted the most."""
    return adaptive_max_pool2d(masks[:, None], (height, width))


def check_inpainting(
    images: Tensor,
    masks: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strength: float,
    sampling: Sampling,
    resolution: int,
) -> None:
    """Refuse what `TextToImage.inpaint` cannot take; see there."""
    counts = {"images": len(images), "masks": len(masks), "prompts": len(prompts), "seeds": len(seeds)}
    if not prompts or len(set(counts.values())) > 1:
        raise ValueError(
            f"Inpainting came with {', '.join(f'{count} {name}' for name, count in counts.items())}; give at least one "
            "image, and a mask, a prompt and a seed for each."
        )
    if images.shape[2:] != (resolution, resolution) or masks.shape[1:] != images.shape[2:]:
        raise ValueError(
            f"Images of {tuple(images.shape[2:])} with masks of {tuple(masks.shape[1:])} (height, width) cannot be "
            f"inpainted; the model takes {resolution} x {resolution}. Crop and scale both, as align.inpaint does."
        )
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ValueError("A mask has values outside [0, 1]; it must be 1 where the image is repainted and 0 elsewhere.")
    if not 0 < strength <= 1 or int(sampling.num_inference_steps * strength) < 1:
        raise ValueError(
            f"strength is {strength} of {sampling.num_inference_steps} steps; it must be above 0, at most 1, and leave "
            "at least one step. Raise it, or num_inference_steps; 0.4 to 1 is usual."
        )
