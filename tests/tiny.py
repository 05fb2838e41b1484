"""A tiny but real Stable Diffusion folder, built from configurations: 16 x 16 pixels, random weights, fast."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24


def tiny_tokenizer() -> CLIPTokenizer:
    """Every byte is a token, alone and as the end of a word; no merges."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=MAX_TOKENS
    )


def tiny_pipeline(
    prediction_type: str = "epsilon", seed: int = 0, in_channels: int = 4
) -> StableDiffusionPipeline | StableDiffusionInpaintPipeline:
    """A pipeline whose pictures depend visibly on seed, prompt and guidance; with 9 channels, one for inpainting."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder, unet, vae = _text_encoder(tokenizer), _unet(in_channels), _vae()
    _strengthen(unet, text_encoder)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]
    )
    pipeline = StableDiffusionPipeline if in_channels == 4 else StableDiffusionInpaintPipeline
    return pipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def save_tiny_model(folder: Path, prediction_type: str = "epsilon", seed: int = 0, in_channels: int = 4) -> Path:
    """Write the pipeline to `folder` in diffusers' layout, and return `folder`."""
    tiny_pipeline(prediction_type, seed, in_channels).save_pretrained(folder)
    return folder


def _text_encoder(tokenizer: Any) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _unet(in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def _strengthen(unet: UNet2DConditionModel, text_encoder: Any) -> None:
    """Fresh weights hardly listen to the text; make it louder, so that a test can tell prompts apart."""
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight.mul_(50)
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear) and "attn2" in name:
                module.weight.mul_(4)
