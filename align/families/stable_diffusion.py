"""Stable Diffusion 1.x and 2.x (arXiv 2112.10752): a UNet on latents, conditioned on CLIP text, predicts noise or v."""

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel

from align.families.latent_inpainting import Denoise, check_inpainting, latent_mask, repaint_latents, step_arguments
from align.families.vocabulary import Vocabulary
from align.lora import lora_digest
from align.model import LearnedToken, Sampling, TextToImage

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
"""Those whose noise, if they add any, can come from a generator per image (DPMSolverSDE has one path for the batch)."""

PIXELS_AT_ONCE = 2**21
"""The autoencoder takes as many images at once as have this many pixels (8 of 512 x 512), to bound its memory."""


@final
class StableDiffusion(TextToImage):
    """A StableDiffusionPipeline folder, frozen. Its safety checker is not loaded: blackened images must not be scored.

    A StableDiffusionInpaintPipeline folder is served, too. If its UNet is a dedicated one, which is shown the mask and
    the rest of the image in 5 more channels, the model can `inpaint`, but neither `sample` nor `predict`.

    Arguments:
        folder: A pipeline folder in diffusers' layout.
        device: Where to compute.
        dtype: Precision of the weights.
        identity: What tells the folder's content and precision from others; goes into the fingerprint.

    Raises:
        ValueError: A component is damaged or incomplete, or the model is of a kind this class does not serve.
    """

    components = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, identity: str) -> None:
        pipeline = _load_pipeline(folder, dtype).to(device)
        _check_supported(folder, pipeline)
        self._identity = identity
        self._dtype = dtype
        self._vae: Any = pipeline.vae.requires_grad_(False).eval()
        self._text_encoder: Any = pipeline.text_encoder.requires_grad_(False).eval()
        self._vocabulary = Vocabulary(pipeline.tokenizer, pipeline.text_encoder)
        self._unet: Any = pipeline.unet.requires_grad_(False).eval()
        self._scheduler: Any = pipeline.scheduler  # only its class and configuration: each call makes its own
        self._noise_levels: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.device = device
        self.resolution = self._unet.config.sample_size * pipeline.vae_scale_factor
        self.num_train_timesteps = self._noise_levels.config.num_train_timesteps
        self.prediction_type = self._noise_levels.config.prediction_type
        self.denoiser = self._unet
        self.denoiser_name = "unet"
        self.lora_target_modules = ("to_k", "to_q", "to_v", "to_out.0")

    @property
    def fingerprint(self) -> str:
        content = self._identity.encode() + lora_digest(self._unet) + self._vocabulary.digest()
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens dim"]:
        tokenizer = self._vocabulary.tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        uses_mask = getattr(self._text_encoder.config, "use_attention_mask", False)
        return self._text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask if uses_mask else None)[0]

    def count_truncated(self, prompts: Sequence[str]) -> int:
        tokenizer = self._vocabulary.tokenizer
        lengths = [len(ids) for ids in tokenizer(list(prompts), verbose=False).input_ids]
        return sum(length > tokenizer.model_max_length for length in lengths)

    def add_token(self, token: str, start: str | Float[Tensor, " dim"]) -> LearnedToken:
        return self._vocabulary.add(token, start)

    def remove_token(self, token: str) -> None:
        self._vocabulary.remove(token)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Float[Tensor, "batch 3 h w"]:
        if not prompts or len(prompts) != len(seeds):
            raise ValueError(
                f"{len(prompts)} prompts came with {len(seeds)} seeds; give at least one prompt, and one seed for each."
            )
        self._check_not_dedicated()
        scheduler = self._new_scheduler(sampling)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        denoise = self._guided(prompts, sampling)
        x_t = self._noise(generators) * scheduler.init_noise_sigma
        for step, t in enumerate(scheduler.timesteps, 1):
            prediction = denoise(scheduler.scale_model_input(x_t, t), t)
            arguments = step_arguments(scheduler, generators, step)
            x_t = scheduler.step(prediction, t, x_t, **arguments, return_dict=False)[0]
        return self.decode_latents(x_t.float())

    @torch.no_grad()
    def inpaint(
        self,
        images: Float[Tensor, "batch 3 h w"],
        masks: Float[Tensor, "batch h w"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        strength: float,
        sampling: Sampling,
    ) -> Float[Tensor, "batch 3 h w"]:
        check_inpainting(images, masks, prompts, seeds, strength, sampling, self.resolution)
        scheduler = self._new_scheduler(sampling)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        guided = self._guided(prompts, sampling)
        original = self.encode_images(images).to(self._dtype)
        mask = latent_mask(masks.to(self.device, self._dtype), *original.shape[2:])
        shown = self._shown(images, masks, mask)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return guided(torch.cat([x_t, shown], dim=1), t)

        noise = self._noise(generators)
        latents = repaint_latents(denoise, scheduler, original, mask, generators, noise, strength)
        return self.decode_latents(latents.float())

    def encode_images(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels latent_h latent_w"]:
        batches = self._split(images.to(self.device, self._dtype), images[0, 0].numel())
        latents = [self._vae.encode(2 * batch - 1).latent_dist.mode() for batch in batches]
        return torch.cat(latents).float() * self._vae.config.scaling_factor

    def decode_latents(
        self, latents: Float[Tensor, "batch channels latent_h latent_w"]
    ) -> Float[Tensor, "batch 3 h w"]:
        batches = self._split((latents / self._vae.config.scaling_factor).to(self._dtype), self.resolution**2)
        images = torch.cat([self._vae.decode(batch, return_dict=False)[0] for batch in batches])
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def add_noise(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        return self._noise_levels.add_noise(latents, noise, timesteps)

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return compute_snr(self._noise_levels, timesteps)

    def predict(
        self,
        noisy: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
        embeddings: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        self._check_not_dedicated()
        return self._unet(noisy.to(self._dtype), timesteps, embeddings.to(self._dtype), return_dict=False)[0].float()

    def target(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        if self.prediction_type == "epsilon":
            return noise
        return self._noise_levels.get_velocity(latents, noise, timesteps)

    def _new_scheduler(self, sampling: Sampling) -> Any:
        """A scheduler without history, set to its steps."""
        name = sampling.scheduler or type(self._scheduler).__name__
        if name not in SCHEDULERS:
            near = difflib.get_close_matches(name, SCHEDULERS, 3, cutoff=0.4)
            raise ValueError(
                f"{name!r} is not a scheduler that can draw each image from its own seed."
                + (f" Did you mean {' or '.join(near)}?" if near else "")
                + f" These can: {', '.join(SCHEDULERS)}."
            )
        scheduler = getattr(diffusers, name).from_config(self._scheduler.config)
        scheduler.set_timesteps(sampling.num_inference_steps, device=self.device)
        return scheduler

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        """Standard normal latents in the weights' precision, drawn as diffusers draws them for a list of generators."""
        side = self._unet.config.sample_size
        shape = (len(generators), self._vae.config.latent_channels, side, side)
        return randn_tensor(shape, generator=generators, device=self.device, dtype=self._dtype)

    def _unique_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings of prompts, each different one encoded once."""
        unique = list(dict.fromkeys(prompts))
        return self.encode_prompts(unique)[[unique.index(prompt) for prompt in prompts]]

    def _guided(self, prompts: Sequence[str], sampling: Sampling) -> Denoise:
        """Classifier-free guidance (arXiv 2207.12598) as `Sampling` has it, in one forward; at 1, none."""
        embeddings, shares = self._unique_embeddings(prompts), list(sampling.negative_shares.values())
        if sampling.guidance_scale == 1:
            return lambda x_t, t: self._unet(x_t, t, embeddings, return_dict=False)[0]
        negatives = self.encode_prompts(list(sampling.negative_shares))
        conditions, copies = torch.cat([negatives.repeat_interleave(len(prompts), 0), embeddings]), len(shares) + 1

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            predictions = self._unet(torch.cat([x_t] * copies), t, conditions, return_dict=False)[0]
            *e_negatives, e_prompt = predictions.chunk(copies)
            e_negative = torch.stack([share * e for share, e in zip(shares, e_negatives, strict=True)]).sum(0)
            return e_negative + sampling.guidance_scale * (e_prompt - e_negative)

        return denoise

    @property
    def _is_dedicated(self) -> bool:
        return self._unet.config.in_channels != self._vae.config.latent_channels

    def _check_not_dedicated(self) -> None:
        if self._is_dedicated:
            raise ValueError(
                "This model only inpaints: its UNet wants a mask and an image. Use the plain model of its family to "
                "draw images or to fine-tune, and this one to repair them."
            )

    def _shown(self, images: Tensor, masks: Tensor, mask: Tensor) -> Tensor:
        """What a dedicated UNet is shown beside the noisy latents: where to repaint, and the rest of the image.

        What is to be repainted is grey in that image. A plain UNet is shown nothing, so these are 0 channels.
        """
        if not self._is_dedicated:
            return mask[:, :0]
        rest = torch.where(masks[:, None].to(images.device) > 0, 0.5, images)
        return torch.cat([(mask > 0).to(self._dtype), self.encode_images(rest).to(self._dtype)], dim=1)

    def _split(self, batch: Tensor, pixels_per_image: int) -> tuple[Tensor, ...]:
        return batch.split(max(1, PIXELS_AT_ONCE // pixels_per_image))


def _load_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    modules = {
        "vae": _load_component(AutoencoderKL, folder / "vae", torch_dtype=dtype),
        "unet": _load_component(UNet2DConditionModel, folder / "unet", torch_dtype=dtype),
        "text_encoder": _load_component(CLIPTextModel, folder / "text_encoder", dtype=dtype),
    }
    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    is_plain = modules["unet"].config.in_channels == modules["vae"].config.latent_channels
    pipeline: Any = StableDiffusionPipeline if is_plain else StableDiffusionInpaintPipeline
    try:
        return pipeline.from_pretrained(
            folder, **modules, **unused, requires_safety_checker=False, local_files_only=True
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"The tokenizer or the scheduler in {folder} cannot be loaded ({error}). Restore them from their source."
        ) from error


def _load_component(cls: Any, folder: Path, **precision: torch.dtype) -> Any:
    """A module with all its weights from safetensors; both libraries fill missing ones with noise, and only say so."""
    try:
        module, info = cls.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, local_files_only=True, **precision
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} cannot be loaded as {cls.__name__} ({error}). It must hold a config.json and complete "
            ".safetensors files (pickled .bin files are not read). Restore it from the model's source."
        ) from error
    if absent := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ValueError(
            f"The weights in {folder} lack {len(absent)} tensors, such as {absent[0]}. Restore them from their source."
        )
    return module


def _check_supported(folder: Path, pipeline: Any) -> None:
    """Refuse what loads without a complaint and would be sampled wrongly: a relative of SD, or one without a file."""
    unet, vae, text = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    prediction_type = pipeline.scheduler.config.get("prediction_type", "epsilon")
    tokens, limit = len(pipeline.tokenizer), pipeline.tokenizer.model_max_length
    problems = {
        f"its tokenizer has {tokens} tokens, its text encoder {text.vocab_size}": not 256 <= tokens <= text.vocab_size,
        f"its tokenizer gives up to {limit} tokens, its text encoder takes {text.max_position_embeddings}": (
            limit > text.max_position_embeddings
        ),
        f"its UNet takes {unet.in_channels} channels": (
            unet.in_channels not in (vae.latent_channels, 2 * vae.latent_channels + 1)
        ),
        "its UNet takes the guidance scale as an input (distilled?)": unet.time_cond_proj_dim is not None,
        f"its images are not square (sample_size {unet.sample_size})": not isinstance(unet.sample_size, int),
        f"it predicts {prediction_type!r}": prediction_type not in ("epsilon", "v_prediction"),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(
                f"The model in {folder} is not a plain Stable Diffusion 1.x or 2.x: {problem}. "
                "Use one that is, or restore its files from their source."
            )
