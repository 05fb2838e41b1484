"""What a recipe may ask of a text-to-image model, whichever family it belongs to."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def weighted_texts(texts: str | Mapping[str, float]) -> str | dict[str, float]:
    """One text, or several with weights, in the form they are kept in: a mapping of one is that text alone.

    Raises:
        ValueError: There is no text, or a weight, or the sum of all, is not finite and above 0.
    """
    if isinstance(texts, str):
        return texts
    weights = {text: float(weight) for text, weight in texts.items()}
    if not weights:
        raise ValueError("A mapping of texts to weights is empty; it needs at least one text. '' is the empty text.")
    if min(weights.values()) <= 0 or not math.isfinite(sum(weights.values())):
        raise ValueError(
            f"The weights of texts are {weights}; each must be finite and above 0. Leave out a text that is not wanted."
        )
    return next(iter(weights)) if len(weights) == 1 else weights


@dataclass(frozen=True)
class Sampling:
    """How images are drawn from a model; names as in diffusers.

    With several negative prompts, e_negative is the weighted mean of their predictions, sum_k w_k e_k / sum_k w_k. As
    e_negative + w (e_prompt - e_negative) = e_prompt + sum_k (w - 1) w_k / (sum_j w_j) (e_prompt - e_k), each negative
    prompt has a term of its own, which leads from it to the prompt: a sum of concept negations (arXiv 2206.01714), in
    which the prompt stands in the place of the unconditional prediction. Their strengths add up to that of one.

    Arguments:
        num_inference_steps: Steps asked of the scheduler.
        guidance_scale: w in e_negative + w (e_prompt - e_negative), which is one more than the w of arXiv 2207.12598,
            equation 6. 1 is no guidance, and saves the negative pass.
        negative_prompt: What to steer away from; read only where guidance is on. A mapping gives each of several
            negative prompts a weight, of which only the ratios matter. A mapping of one is kept as that text.
        scheduler: A scheduler's class name in diffusers, e.g. "DDIMScheduler"; None takes the one the model came with.

    Raises:
        ValueError: Less than one step, a guidance scale below 1, or negative prompts that are a mapping of none, or of
            weights that are not finite and above 0.
    """

    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | Mapping[str, float] = ""
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}; it must be at least 1. 20 to 50 is usual."
            )
        if not 1 <= self.guidance_scale < math.inf:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}; it must be a finite number of at least 1, where 1 means no "
                "guidance. 5 to 8 is usual for Stable Diffusion."
            )
        object.__setattr__(self, "negative_prompt", weighted_texts(self.negative_prompt))

    @property
    def negative_shares(self) -> dict[str, float]:
        """Each negative prompt with its share of all weights, sorted: the order they came in changes not even a bit."""
        if isinstance(self.negative_prompt, str):
            return {self.negative_prompt: 1.0}
        total = math.fsum(self.negative_prompt.values())
        return {text: weight / total for text, weight in sorted(self.negative_prompt.items())}


@final
class LearnedToken(nn.Module):
    """The vector of a word that a model was taught, as the only parameter; float32 whatever the weights are in."""

    def __init__(self, vector: Float[Tensor, " dim"]) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector)


class TextToImage(ABC):
    """A frozen text-to-image model on one device.

    Images are RGB in [0, 1]; latents are scaled as the denoiser expects them. Both are float32, and so are predictions
    and targets, whatever the precision of the weights.

    Attributes:
        device: Where the model computes and where its tensors come out.
        resolution: Height and width of its images, in pixels.
        num_train_timesteps: Timesteps run from 0 (almost clean) to this number minus one (almost noise).
        prediction_type: What `predict` and `target` give: "epsilon" (the noise) or "v_prediction" (arXiv 2202.00512).
        denoiser: The module that a LoRA goes into, called as diffusers calls it.
        denoiser_name: Its name in a diffusers pipeline, which is also the prefix of its LoRA's keys.
        lora_target_modules: The layers of the denoiser that get a LoRA by default: its attention projections.
    """

    device: torch.device
    resolution: int
    num_train_timesteps: int
    prediction_type: str
    denoiser: nn.Module
    denoiser_name: str
    lora_target_modules: tuple[str, ...]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what decides the pictures: configuration, weights, precision, and of
        LoRA and learned words what they are now."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch tokens dim"]:
        """The text embeddings the denoiser is conditioned on, in the precision of the weights."""

    @abstractmethod
    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are longer than the tokenizer's limit, so that their end is not seen."""

    @abstractmethod
    def add_token(self, token: str, start: str | Float[Tensor, " dim"]) -> LearnedToken:
        """Teach the model a word of one vector (arXiv 2208.01618), and return it, ready to train.

        `encode_prompts` is differentiable with respect to the vector, and reads it as it is at the time. The embeddings
        of prompts without the word stay what they were, bit for bit. As in diffusers, the word is found within others,
        and where the tokenizer does not tell capital letters apart, neither does it.

        Arguments:
            token: The word, like "<bad>".
            start: The vector itself, or words: it then starts as the mean of those of their tokens.

        Raises:
            ValueError: The tokenizer knows the word already, it holds white space, no word to start from, or a vector
                of another width.
        """

    @abstractmethod
    def remove_token(self, token: str) -> None:
        """Forget a learned word, the inverse of `add_token`: all is bit for bit what it was.

        Raises:
            ValueError: It is no learned word.
        """

    @abstractmethod
    def sample(self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Float[Tensor, "batch 3 h w"]:
        """One image for each pair of prompt and seed, without gradients.

        All randomness of an image comes from a CPU generator of its own, so an image depends neither on the others in
        the batch (up to the rounding of batched arithmetic) nor on the state of any global generator.

        Raises:
            ValueError: Prompts and seeds differ in number, there are none, or the scheduler is not a supported one.
        """

    @abstractmethod
    def inpaint(
        self,
        images: Float[Tensor, "batch 3 h w"],
        masks: Float[Tensor, "batch h w"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        strength: float,
        sampling: Sampling,
    ) -> Float[Tensor, "batch 3 h w"]:
        """Repaint what is inside the masks, without gradients. An image depends on its seed as in `sample`.

        Outside of the mask the latents stay those of `encode_images`, but an autoencoder is never exact: where the rest
        of the image must not change, paste the repainted area into it, as align.inpaint does.

        Arguments:
            images: Of the model's resolution, on any device.
            masks: In [0, 1], of the images' size. 1 is repainted in all the steps that are run, 0 in none, and a value
                between in that share of them, the last (arXiv 2306.00950), as with so much less strength.
            prompts: One for each image, for what is to be seen.
            seeds: One for each image.
            strength: In (0, 1]: the share of the steps that are run, int(num_inference_steps * strength) of them. 1
                forgets what was inside the mask; 0.4 to 0.6 refines it.
            sampling: How to draw.

        Raises:
            ValueError: Numbers that differ, sizes that are not the model's, mask values or a strength out of bounds, or
                a scheduler that is not a supported one.
        """

    @abstractmethod
    def encode_images(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch channels latent_h latent_w"]:
        """The most likely latents of images, scaled; deterministic, differentiable.

        Heights and widths are multiples of the autoencoder's factor (8 pixels for Stable Diffusion).
        """

    @abstractmethod
    def decode_latents(
        self, latents: Float[Tensor, "batch channels latent_h latent_w"]
    ) -> Float[Tensor, "batch 3 h w"]:
        """The images of scaled latents, clamped to [0, 1]; differentiable."""

    @abstractmethod
    def add_noise(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        """The latents at noise levels `timesteps`: x_t = alpha_t x + sigma_t noise (arXiv 2006.11239, equation 4)."""

    @abstractmethod
    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The signal-to-noise ratio alpha_t^2 / sigma_t^2 of noise levels; 0 where there is no signal."""

    @abstractmethod
    def predict(
        self,
        noisy: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
        embeddings: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        """The denoiser's answer, without guidance, to be compared with `target`; differentiable."""

    @abstractmethod
    def target(
        self,
        latents: Float[Tensor, "batch channels latent_h latent_w"],
        noise: Float[Tensor, "batch channels latent_h latent_w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels latent_h latent_w"]:
        """What a perfect denoiser would predict: the noise, or v = alpha_t noise - sigma_t x (arXiv 2202.00512)."""
