"""The denoiser of the sandbox's Stable Diffusion, and the whole pipeline folder.

It is trained on flawed scenes as well as clean ones, so that, like a real base model, it is good and yet often wrong.
The text tower is that of the sandbox's CLIP, frozen at first, as in Stable Diffusion, then trained along, as in latent
diffusion (both arXiv 2112.10752): a small CLIP knows colours and counts and says little of shapes. It predicts v (arXiv
2202.00512) under a schedule that ends in pure noise (arXiv 2305.08891): backgrounds are white, grey or black, and a
schedule that leaks their brightness into the last step makes all of them grey.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from align.log import Log
from align.losses import denoising_mse
from align.state import atomic_path
from align.train import TrainSettings, train
from sandbox.build.clip import tokenize
from sandbox.build.pictures import Pictures, draw_pictures
from sandbox.build.tokenizer import MAX_TOKENS, build_tokenizer


@dataclass(frozen=True)
class Phase:
    """One stage of training; `flawed` is the share of pictures with a flaw that the caption does not tell."""

    name: str
    joint: bool
    pictures: int
    flawed: float
    learning_rate: float
    seed: int
    balanced: bool = False
    """Whether the middle noise levels, where outlines are decided, count as much as the high ones, whose error is ten
    times as large whatever is learned: half of the levels are drawn there, and `balance` weighs them."""


PHASES = (
    Phase("denoiser", joint=False, pictures=20_000, flawed=0.4, learning_rate=8e-4, seed=3),
    Phase("joint", joint=True, pictures=14_000, flawed=0.6, learning_rate=5e-4, seed=7),
    Phase("outlines", joint=True, pictures=24_000, flawed=0.5, learning_rate=8e-4, seed=11, balanced=True),
    Phase("flaws", joint=True, pictures=20_000, flawed=0.75, learning_rate=7e-4, seed=13, balanced=True),
)
PROMPT_DROPOUT = 0.1


class Conditioned(nn.Module):
    """The denoiser behind the text tower that conditions it; what requires a gradient is trained."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder

    def forward(
        self, latents: Float[Tensor, "batch 4 16 16"], t: Int[Tensor, " batch"], tokens: Int[Tensor, "batch 32"]
    ) -> Float[Tensor, "batch 4 16 16"]:
        """The prediction of v."""
        return self.unet(latents, t, self.text_encoder(tokens).last_hidden_state).sample


def finish(
    model: Conditioned, folder: Path, autoencoder: AutoencoderKL, phase: Phase, steps: int, accelerator: Accelerator
) -> None:
    """Bring a model to the end of a phase, on the CPU: train it in `folder` (resumable), unless that is done."""
    final = folder / "final.safetensors"
    if not final.exists():
        train_phase(model, folder, autoencoder, phase, steps, accelerator)
        with atomic_path(final) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in model.cpu().state_dict().items()}, temporary)
    model.load_state_dict(load_file(final))


def train_phase(
    model: Conditioned, folder: Path, autoencoder: AutoencoderKL, phase: Phase, steps: int, accelerator: Accelerator
) -> None:
    """Train the denoiser (and its text tower, if that requires gradients) on latents that are encoded once."""
    pictures = draw_pictures(phase.pictures, "train", phase.flawed, seed=phase.seed)
    latents = cached_latents(folder / "latents.safetensors", autoencoder, pictures)
    texts, text_of = np.unique(pictures.captions, return_inverse=True)
    tokens = tokenize(["", *texts.tolist()])
    schedule: Any = DDPMScheduler.from_config(new_scheduler().config)
    device, weights = accelerator.device, balance(schedule.alphas_cumprod) if phase.balanced else None

    def batch(step: int) -> tuple[Tensor, Tensor]:
        indices = pictures.batch(step, 32, seed=phase.seed)
        kept = np.random.default_rng((phase.seed + 1, step)).random(len(indices)) >= PROMPT_DROPOUT
        return latents[indices].to(device), tokens[np.where(kept, text_of[indices] + 1, 0)].to(device)

    def loss(module: nn.Module, pair: tuple[Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
        clean, conditions = pair
        noise = torch.randn(clean.shape, generator=generator).to(device)
        t = noise_levels(len(clean), schedule.config["num_train_timesteps"], 0.5 * phase.balanced, generator)
        counts = None if weights is None else weights[t].to(device)
        t = t.to(device)
        prediction = module(schedule.add_noise(clean, noise, t), t, conditions)
        return denoising_mse(prediction, schedule.get_velocity(clean, noise, t), counts)

    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    train(model, batch, loss, _settings(phase, steps), folder, Log(folder), accelerator)


def noise_levels(batch: int, count: int, central: float, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Timesteps below `count`: a share of them logit-normal (arXiv 2403.03206, section 3.1), the others uniform."""
    uniform = torch.rand(batch, generator=generator)
    middle = torch.randn(batch, generator=generator).sigmoid()
    chosen = torch.rand(batch, generator=generator) < central
    return (torch.where(chosen, middle, uniform) * count).long().clamp(max=count - 1)


def balance(alphas_cumprod: Float[Tensor, " level"]) -> Float[Tensor, " level"]:
    """The inverse of the error of v to be expected at each noise level, about one on average.

    A network could learn it (arXiv 2312.02696); this one is read off a trained denoiser of ours, whose
    error fell from 0.45 at pure noise to 0.03 as 1 / (2.2 + 90 alphas_cumprod).
    """
    return (1 + 40 * alphas_cumprod).clamp(max=15) / 8


def _settings(phase: Phase, max_train_steps: int) -> TrainSettings:
    return TrainSettings(
        max_train_steps=max_train_steps,
        learning_rate=phase.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=200,
        adam_weight_decay=0.01,
        ema_decay=0.999,
        checkpointing_steps=100,
        seed=phase.seed,
    )


def new_denoiser() -> UNet2DConditionModel:
    """An untrained UNet of 4 M parameters: convolutions at 16 x 16, attention to the caption at 8 x 8 and 4 x 4."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 96, 96),
        norm_num_groups=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
    )


def new_scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's noise schedule, rescaled to end in pure noise, with a solver that needs a dozen steps."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def text_encoder_of(clip: Any) -> CLIPTextModel:
    """The text tower of an open_clip model as the `CLIPTextModel` of a diffusers pipeline."""
    width, layers = clip.ln_final.weight.shape[0], len(clip.transformer.resblocks)
    tokenizer: Any = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
    model = CLIPTextModel(config)
    known = set(model.state_dict())
    prefix = "text_model." if any(name.startswith("text_model.") for name in known) else ""
    model.load_state_dict({prefix + name: value for name, value in _renamed(clip).items()}, strict=False)
    missing = known - {prefix + name for name in _renamed(clip)} - {f"{prefix}embeddings.position_ids"}
    assert not missing, missing
    return model.eval().requires_grad_(False)


def _renamed(clip: Any) -> dict[str, Tensor]:
    """The tensors of open_clip's text tower under the names of transformers; attention projections split in three."""
    tensors = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for index, block in enumerate(clip.transformer.resblocks):
        state, layer = block.state_dict(), f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                tensors[f"{layer}.{ours}.{kind}"] = state[f"{theirs}.{kind}"]
            for name, part in zip("qkv", state[f"attn.in_proj_{kind}"].chunk(3), strict=True):
                tensors[f"{layer}.self_attn.{name}_proj.{kind}"] = part
    return {name: tensor.detach() for name, tensor in tensors.items()}


@torch.no_grad()
def cached_latents(path: Path, autoencoder: Any, pictures: Pictures) -> Float[Tensor, "n 4 16 16"]:
    """Scaled latents of all pictures, encoded once and kept beside the checkpoints."""
    if not path.exists():
        chunks = np.array_split(np.arange(len(pictures)), max(1, len(pictures) // 64))
        latents = [autoencoder.encode(pictures.images(chunk) * 2 - 1).latent_dist.mean for chunk in chunks]
        with atomic_path(path) as temporary:
            scaled = torch.cat(latents) * autoencoder.config["scaling_factor"]
            save_file({"latents": scaled.contiguous()}, temporary)
    return load_file(path)["latents"]


def save_pipeline(
    folder: Path, autoencoder: AutoencoderKL, text_encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> None:
    """Write the pipeline folder of diffusers, in half precision; the modules stay as they are."""
    vae, text_encoder, unet = deepcopy((autoencoder, text_encoder, unet))
    vae.register_to_config(_name_or_path="sandbox")  # not the path of the machine that trained it
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
