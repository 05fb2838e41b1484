"""A model that is asked for the same words before every prompt; a text-to-image model like any other."""

import hashlib
from collections.abc import Sequence
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from align.model import LearnedToken, Sampling, TextToImage


@final
class Prefixed(TextToImage):
    """`model`, which reads `prefix` before each prompt, but not before a negative prompt.

    Who draws and scores with it goes on with the plain prompts, so that images pair with those of `model` itself.
    """

    def __init__(self, model: TextToImage, prefix: str) -> None:
        self._model, self._prefix = model, prefix
        self.device, self.resolution = model.device, model.resolution
        self.num_train_timesteps, self.prediction_type = model.num_train_timesteps, model.prediction_type
        self.denoiser, self.denoiser_name = model.denoiser, model.denoiser_name
        self.lora_target_modules = model.lora_target_modules

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(f"{self._model.fingerprint} {self._prefix}".encode(), digest_size=8).hexdigest()

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens dim"]:
        return self._model.encode_prompts(self._with_prefix(prompts))

    def count_truncated(self, prompts: Sequence[str]) -> int:
        return self._model.count_truncated(self._with_prefix(prompts))

    def add_token(self, token: str, start: str | Float[Tensor, " dim"]) -> LearnedToken:
        return self._model.add_token(token, start)

    def remove_token(self, token: str) -> None:
        self._model.remove_token(token)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Float[Tensor, "batch 3 h w"]:
        return self._model.sample(self._with_prefix(prompts), seeds, sampling)

    def inpaint(
        self,
        images: Float[Tensor, "batch 3 h w"],
        masks: Float[Tensor, "batch h w"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        strength: float,
        sampling: Sampling,
    ) -> Float[Tensor, "batch 3 h w"]:
        return self._model.inpaint(images, masks, self._with_prefix(prompts), seeds, strength, sampling)

    def encode_images(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels latent_h latent_w"]:
        return self._model.encode_images(images)

    def decode_latents(
        self, latents: Float[Tensor, "batch channels latent_h latent_w"]
    ) -> Float[Tensor, "batch 3 h w"]:
        return self._model.decode_latents(latents)

    def add_noise(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        return self._model.add_noise(latents, noise, timesteps)

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return self._model.snr(timesteps)

    def predict(
        self,
        noisy: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
        embeddings: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        return self._model.predict(noisy, timesteps, embeddings)

    def target(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        return self._model.target(latents, noise, timesteps)

    def _with_prefix(self, prompts: Sequence[str]) -> list[str]:
        return [self._prefix + prompt for prompt in prompts]
