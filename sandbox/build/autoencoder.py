"""The autoencoder of the sandbox's Stable Diffusion: 64x64x3 pixels to 16x16x4 latents and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from align.log import Log
from align.train import TrainSettings, train
from sandbox.build.pictures import Pictures, draw_pictures

KL_WEIGHT = 1e-6
"""As in latent diffusion (arXiv 2112.10752, appendix G): just enough to keep the latents bounded."""

CHROMA_WEIGHT = 3.0
"""Colour is meaning here, and brightness alone would be learned first."""


def build_autoencoder(folder: Path, accelerator: Accelerator, max_train_steps: int = 3000) -> AutoencoderKL:
    """Train the autoencoder in `folder` (resumable) and set its scaling factor so that latents have unit variance."""
    torch.manual_seed(0)
    autoencoder = new_autoencoder().to(accelerator.device, memory_format=torch.channels_last)
    pictures = draw_pictures(12_000, "train", flawed=0.5, seed=1)
    settings = TrainSettings(
        max_train_steps=max_train_steps,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        adam_weight_decay=0.0,
        checkpointing_steps=100,
        seed=1,
    )
    log = Log(folder)
    train(
        autoencoder,
        lambda step: pictures.images(pictures.batch(step, 8, seed=1)),
        _loss,
        settings,
        folder,
        log,
        accelerator,
    )
    scale = 1 / latent_deviation(autoencoder, pictures)
    autoencoder.register_to_config(scaling_factor=scale)
    return autoencoder


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder of 0.8 M parameters."""
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 48, 64),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    # start almost without noise: at the usual unit variance the colours drown for a thousand steps
    assert autoencoder.quant_conv is not None and autoencoder.quant_conv.bias is not None
    nn.init.constant_(autoencoder.quant_conv.bias[4:], -6.0)
    return autoencoder


def _loss(module: Any, images: Float[Tensor, "batch 3 64 64"], generator: torch.Generator) -> Float[Tensor, ""]:
    """Squared error of the reconstruction, and of its chroma, plus the weighted KL divergence to a unit Gaussian."""
    images = images.to(next(module.parameters()).device) * 2 - 1
    encoded = module.encode(images).latent_dist
    noise = torch.randn(encoded.mean.shape, generator=generator).to(images)
    decoded = module.decode(encoded.mean + encoded.std * noise).sample
    error = decoded - images
    chroma = error - error.mean(1, keepdim=True)
    return error.square().mean() + CHROMA_WEIGHT * chroma.square().mean() + KL_WEIGHT * encoded.kl().mean()


@torch.no_grad()
def latent_deviation(autoencoder: Any, pictures: Pictures) -> float:
    """Standard deviation of the latents of 256 pictures, over all channels."""
    latents = autoencoder.encode(pictures.images(np.arange(256)) * 2 - 1).latent_dist.mean
    return float(latents.std())


@torch.no_grad()
def peak_signal_to_noise(autoencoder: Any, images: Float[Tensor, "batch 3 64 64"]) -> float:
    """PSNR in dB of reconstructions from the mean latent, pixels in [0, 1]; mean over images."""
    decoded = autoencoder.decode(autoencoder.encode(images * 2 - 1).latent_dist.mean).sample
    error = ((decoded / 2 + 0.5).clamp(0, 1) - images).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())
