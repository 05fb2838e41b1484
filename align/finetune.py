"""LoRA fine-tuning of a text-to-image model on images of its own or others': encoded once, then trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from align import lora
from align.log import Log
from align.losses import denoising_mse
from align.model import TextToImage
from align.samples import SampleRow, SampleStore
from align.train import Batches, Loss, TrainSettings, step_generator, train


@dataclass(frozen=True)
class Encoded:
    """Images as latents, their prompts as embeddings (each different one once, the empty one first)."""

    latents: Float[Tensor, "image channels latent_h latent_w"]
    embeddings: Float[Tensor, "prompt tokens dim"]
    prompt_of: Int[Tensor, " image"]


@torch.no_grad()
def encode(model: TextToImage, store: SampleStore, rows: list[SampleRow], batch_size: int, log: Log) -> Encoded:
    """Encode images and prompts once, `batch_size` at a time; both stay in main memory."""
    prompts = ["", *dict.fromkeys(row.text for row in rows)]
    latents: list[Tensor] = []
    with log.progress(len(rows), "encode") as progress:
        for start in range(0, len(rows), batch_size):
            images = store.load(rows[start : start + batch_size]).to(model.device)
            latents.append(model.encode_images(images).cpu())
            progress.update(len(images))
    chunks = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    embeddings = torch.cat([model.encode_prompts(chunk).cpu() for chunk in chunks])
    index = {prompt: number for number, prompt in enumerate(prompts)}
    return Encoded(torch.cat(latents), embeddings, torch.tensor([index[row.text] for row in rows]))


@dataclass(frozen=True)
class LoraTraining:
    """A LoRA and how it is trained; names as in the diffusers training scripts.

    Noise levels are drawn from `min_timestep` (as in kohya's scripts) up to the model's last.
    """

    rank: int
    lora_alpha: int
    target_modules: Sequence[str] | None
    train_batch_size: int
    proportion_empty_prompts: float
    min_timestep: int
    loop: TrainSettings


def train_lora(
    model: TextToImage,
    store: SampleStore,
    rows: list[SampleRow],
    settings: LoraTraining,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
) -> None:
    """Train a LoRA on images, checkpoints in `folder/checkpoints`, into `folder/lora`; the model is left as it was.

    The objective is the denoising error (arXiv 2006.11239, equation 14) at the noise levels from `min_timestep` on.
    Does nothing where `folder/lora` is there.

    Raises:
        ValueError: `min_timestep` leaves no noise level.
    """
    if (folder / "lora").exists():
        return
    check_min_timestep(model, settings.min_timestep)
    data = encode(model, store, rows, settings.train_batch_size, log)
    targets = settings.target_modules or model.lora_target_modules
    lora.inject(model.denoiser, settings.rank, settings.lora_alpha, targets, settings.loop.seed)
    batches = _batches(data, settings, model.device)
    train(
        model.denoiser,
        batches,
        _loss(model, settings.min_timestep),
        settings.loop,
        folder / "checkpoints",
        log,
        accelerator,
    )
    lora.save_lora(model, folder / "lora")
    lora.eject(model.denoiser)


def check_min_timestep(model: TextToImage, min_timestep: int) -> None:
    """Raise a ValueError unless there are noise levels from `min_timestep` on."""
    if not 0 <= min_timestep < model.num_train_timesteps:
        raise ValueError(
            f"min_timestep is {min_timestep}; it must be from 0 to {model.num_train_timesteps - 1}, the last of this "
            "model. Half of that trains on what is decided early: layout, colours, counts."
        )


def shuffled(count: int, batch_size: int, seed: int) -> Callable[[int], Int[Tensor, " batch"]]:
    """The indices of a step's batch: every index once an epoch, each epoch in an order of its own.

    A pure function of the step. A batch may reach over the end of an epoch into the next one.
    """

    def order(epoch: int) -> Tensor:
        return torch.randperm(count, generator=step_generator(seed, epoch))

    def indices(step: int) -> Tensor:
        first, last = step * batch_size, (step + 1) * batch_size
        epochs = range(first // count, (last - 1) // count + 1)
        return torch.cat([order(epoch) for epoch in epochs])[first - epochs[0] * count :][:batch_size]

    return indices


def _batches(data: Encoded, settings: LoraTraining, device: torch.device) -> Batches[tuple[Tensor, Tensor]]:
    size, seed = settings.train_batch_size, settings.loop.seed
    order = shuffled(len(data.latents), size, seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        images = order(step)
        empty = torch.rand(size, generator=step_generator(seed + 1, step)) < settings.proportion_empty_prompts
        prompts = torch.where(empty, 0, data.prompt_of[images])
        return data.latents[images].to(device), data.embeddings[prompts].to(device)

    return batch


def _loss(model: TextToImage, min_timestep: int) -> Loss[tuple[Tensor, Tensor]]:
    def loss(denoiser: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
        del denoiser  # the one the LoRA is in is the model's own
        latents, embeddings = batch
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        t = torch.randint(min_timestep, model.num_train_timesteps, (len(latents),), generator=generator).to(
            latents.device
        )
        prediction = model.predict(model.add_noise(latents, noise, t), t, embeddings)
        return denoising_mse(prediction, model.target(latents, noise, t))

    return loss
