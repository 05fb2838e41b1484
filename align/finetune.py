"""LoRA fine-tuning of a text-to-image model on images of its own or others': encoded once, then trained on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from align import lora
from align.encoded import EncodedPictures, Picture, encode_pictures, encode_prompts
from align.log import Log
from align.losses import denoising_mse, min_snr_weights
from align.model import TextToImage
from align.train import Batches, Loss, TrainSettings, Validation, step_generator, train


@dataclass(frozen=True)
class LoraTraining:
    """A LoRA and how it is trained; names as in the diffusers training scripts.

    Attributes:
        rank: Of the update of each layer.
        lora_alpha: The update is scaled by lora_alpha / rank.
        target_modules: Names of the layers; None for the model's own choice.
        train_batch_size: Images a process sees at once.
        proportion_empty_prompts: Share of images whose prompt is replaced by the empty one.
        min_timestep: The lowest noise level drawn (as in kohya's scripts); the highest is the model's last.
        snr_gamma: Of the min-SNR weights (arXiv 2303.09556); None for none.
        noise_offset: Standard deviation of a shift that all pixels of a channel share (0.05 to 0.1 is usual), so that
            very dark and very bright pictures are learned.
        regularization: Share of images drawn from the ordinary ones, against drift.
        loop: The rest.
    """

    rank: int
    lora_alpha: int
    target_modules: Sequence[str] | None
    train_batch_size: int
    proportion_empty_prompts: float
    min_timestep: int
    loop: TrainSettings
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    regularization: float = 0.0


@dataclass(frozen=True)
class NoisyBatch:
    """What a step trains on: latents, the noise to add, its level, and what the picture shows."""

    latents: Float[Tensor, "batch channels latent_h latent_w"]
    noise: Float[Tensor, "batch channels latent_h latent_w"]
    timesteps: Int[Tensor, " batch"]
    prompts: Sequence[str]


Embed = Callable[[Sequence[str]], Tensor]
"""From prompts to their text embeddings, of shape (prompts, tokens, dim)."""


def train_lora(
    model: TextToImage,
    pictures: Sequence[Picture],
    ordinary: Sequence[Picture],
    settings: LoraTraining,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
    start_from: Path | None = None,
    validation: Validation | None = None,
    header: Mapping[str, str] | None = None,
) -> None:
    """Train a LoRA on images, checkpoints in `folder/checkpoints`, into `folder/lora`; the model is left as it was.

    The objective is the denoising error (arXiv 2006.11239, equation 14) at the noise levels from `min_timestep` on.
    Does nothing where the LoRA is there.

    Arguments:
        model: Without a LoRA.
        pictures: What it shall learn.
        ordinary: What it shall not forget: images of which a share is mixed in, see `LoraTraining.regularization`.
        settings: How.
        folder: For checkpoints, encoded images while they are needed, and the LoRA.
        log: Gets the curves.
        accelerator: The processes that share the work.
        start_from: A LoRA to go on with, instead of a new one.
        validation: What is looked at meanwhile.
        header: What the LoRA's file says beside its settings, see `align.lora.save_lora`.

    Raises:
        ValueError: `min_timestep` leaves no noise level, or a share of ordinary images is asked for and there is none.
    """
    if (folder / "lora" / lora.LORA_WEIGHT_NAME_SAFE).exists():
        return
    check_min_timestep(model, settings.min_timestep)
    encoded = folder / "encoded"
    size = settings.train_batch_size
    data = encode_pictures(model, pictures, encoded / "selected", size, log, accelerator)
    rest = _encode_ordinary(model, ordinary, encoded / "ordinary", settings, log, accelerator)
    texts = ["", *data.texts, *(rest.texts if rest else [])]
    prompts = encode_prompts(model, texts, encoded / "prompts", size, log, accelerator)
    _place(model, settings, start_from)
    batches = noisy_batches(model, data, rest, settings)
    loss = denoising_loss(model, settings.snr_gamma, prompts.embeddings)
    train(model.denoiser, batches, loss, settings.loop, folder / "checkpoints", log, accelerator, validation)
    if accelerator.is_main_process:
        shutil.rmtree(encoded)  # before the LoRA is there: a finished training does not look again
        lora.save_lora(model, folder / "lora", header)
    accelerator.wait_for_everyone()
    lora.eject(model.denoiser)


def check_min_timestep(model: TextToImage, min_timestep: int) -> None:
    """Raise a ValueError unless there are noise levels from `min_timestep` on."""
    if not 0 <= min_timestep < model.num_train_timesteps:
        raise ValueError(
            f"min_timestep is {min_timestep}; it must be from 0 to {model.num_train_timesteps - 1}, the last of this "
            "model. Half of that trains on what is decided early: layout, colours, counts."
        )


def shuffled(count: int, seed: int) -> Callable[[int], int]:
    """The index at a position of an endless stream: every index once an epoch, each epoch in an order of its own."""
    orders: dict[int, list[int]] = {}

    def index(position: int) -> int:
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders.clear()  # the stream is read forwards; another epoch's order is made again when asked for
            orders[epoch] = torch.randperm(count, generator=step_generator(seed, epoch)).tolist()
        return orders[epoch][place]

    return index


def _encode_ordinary(
    model: TextToImage,
    ordinary: Sequence[Picture],
    folder: Path,
    settings: LoraTraining,
    log: Log,
    accelerator: Accelerator,
) -> EncodedPictures | None:
    if not settings.regularization:
        return None
    if not ordinary:
        raise ValueError(
            f"A share of {settings.regularization:g} ordinary images shall be mixed in, and none came. "
            "Give a folder of them with captions, or a share of 0."
        )
    return encode_pictures(model, ordinary, folder, settings.train_batch_size, log, accelerator)


def _place(model: TextToImage, settings: LoraTraining, start_from: Path | None) -> None:
    """A new LoRA, or one that is there, in the denoiser and ready to train."""
    if start_from:
        lora.load_lora(model, start_from)
        return
    targets = settings.target_modules or model.lora_target_modules
    lora.inject(model.denoiser, settings.rank, settings.lora_alpha, targets, settings.loop.seed)


def noisy_batches(
    model: TextToImage, data: EncodedPictures, rest: EncodedPictures | None, settings: LoraTraining
) -> Batches[NoisyBatch]:
    """Batch number m holds the positions from m * size on of one endless stream of noisy images.

    All chance belongs to a position, so the stream is the same however it is cut into batches and processes. A share
    of the images is from `rest`, and a share of the prompts is empty, as the settings say.
    """
    size, seed = settings.train_batch_size, settings.loop.seed
    order, rest_order = shuffled(len(data), seed), shuffled(len(rest) if rest else 1, seed)

    def sample(position: int) -> tuple[Tensor, Tensor, int, str]:
        generator = step_generator(seed + 1, position)
        share, other_share = torch.rand(2, generator=generator).tolist()
        if rest and share < settings.regularization:
            source, image = rest, rest_order(position)
        else:
            source, image = data, order(position)
        latents = source.latents([image])[0]
        prompt = "" if other_share < settings.proportion_empty_prompts else source.texts[image]
        noise = torch.randn(latents.shape, generator=generator)
        shift = settings.noise_offset * torch.randn(len(latents), 1, 1, generator=generator)
        t = torch.randint(settings.min_timestep, model.num_train_timesteps, (), generator=generator)
        return latents, noise + shift, int(t), prompt

    def batch(number: int) -> NoisyBatch:
        latents, noise, t, prompts = zip(*map(sample, range(number * size, (number + 1) * size)), strict=True)
        to = model.device
        return NoisyBatch(torch.stack(latents).to(to), torch.stack(noise).to(to), torch.tensor(t).to(to), prompts)

    return batch


def denoising_loss(model: TextToImage, snr_gamma: float | None, embed: Embed) -> Loss[NoisyBatch]:
    """The denoising error of `model` (arXiv 2006.11239, equation 14), which is shown prompts as `embed` gives them."""

    def loss(module: nn.Module, batch: NoisyBatch, generator: torch.Generator) -> Float[Tensor, ""]:
        del module, generator  # what is trained is in the model itself, and the batch brings its noise
        noisy = model.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = model.predict(noisy, batch.timesteps, embed(batch.prompts).to(model.device))
        target = model.target(batch.latents, batch.noise, batch.timesteps)
        if snr_gamma is None:
            return denoising_mse(prediction, target)
        return denoising_mse(
            prediction, target, min_snr_weights(model.snr(batch.timesteps), snr_gamma, model.prediction_type)
        )

    return loss
