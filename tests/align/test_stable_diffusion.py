"""Stable Diffusion against diffusers' own pipeline, and against the equations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from align.families import stable_diffusion
from align.families.load import load_model
from align.families.stable_diffusion import SCHEDULERS, StableDiffusion
from align.model import Sampling, TextToImage

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "two blue stars", "a red circle")
SEEDS = (1, 2, 3)
STEP = 1 / 255
COMMON = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler")

# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def bare_pipeline(folder: Path, scheduler: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' own pipeline, without anything of ours."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder).to(dtype)
    if scheduler is not None:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """What the bare pipeline draws, as a batch in [0, 1]."""
    images = pipeline(
        list(prompts),
        negative_prompt=[sampling.negative_prompt] * len(prompts),
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """At most one step of 8 bits apart, in pictures that show something."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=STEP)


class TestSample:
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_equals_the_bare_pipeline(self, tiny_folder: Path, tiny_model: TextToImage, scheduler: str) -> None:
        sampling = Sampling(6, 5.0, scheduler=scheduler)
        ours = tiny_model.sample(PROMPTS, SEEDS, sampling)
        assert_same(ours, pictures(bare_pipeline(tiny_folder, scheduler), PROMPTS, SEEDS, sampling))

    @pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 9.0])
    @pytest.mark.parametrize("scheduler", COMMON)
    def test_equals_the_bare_pipeline_at_any_guidance(
        self, tiny_folder: Path, tiny_model: TextToImage, scheduler: str, guidance_scale: float
    ) -> None:
        sampling = Sampling(6, guidance_scale, scheduler=scheduler)
        ours = tiny_model.sample(PROMPTS, SEEDS, sampling)
        assert_same(ours, pictures(bare_pipeline(tiny_folder, scheduler), PROMPTS, SEEDS, sampling))

    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
    def test_equals_the_bare_pipeline_that_predicts_v(self, tiny_v_folder: Path, scheduler: str) -> None:
        sampling = Sampling(6, 4.0, scheduler=scheduler)
        ours = load_model(tiny_v_folder, CPU).sample(PROMPTS, SEEDS, sampling)
        assert_same(ours, pictures(bare_pipeline(tiny_v_folder, scheduler), PROMPTS, SEEDS, sampling))

    def test_equals_the_bare_pipeline_in_half_precision(self, tiny_folder: Path) -> None:
        sampling = Sampling(6, 5.0)
        ours = load_model(tiny_folder, CPU, torch.bfloat16).sample(PROMPTS, SEEDS, sampling)
        theirs = pictures(bare_pipeline(tiny_folder, dtype=torch.bfloat16), PROMPTS, SEEDS, sampling)
        assert ours.dtype == torch.float32
        assert_same(ours, theirs)

    def test_negative_prompt_equals_the_bare_pipeline_and_matters(
        self, tiny_folder: Path, tiny_model: TextToImage
    ) -> None:
        sampling = Sampling(6, 5.0, negative_prompt="ugly, grey")
        ours = tiny_model.sample(PROMPTS, SEEDS, sampling)
        assert_same(ours, pictures(bare_pipeline(tiny_folder), PROMPTS, SEEDS, sampling))
        assert (ours - tiny_model.sample(PROMPTS, SEEDS, Sampling(6, 5.0))).abs().max() > 10 * STEP

    def test_prompt_seed_and_guidance_each_matter(self, tiny_model: TextToImage) -> None:
        sampling = Sampling(6, 3.0)
        reference = tiny_model.sample(["a red circle"], [1], sampling)
        others = [
            tiny_model.sample(["two blue stars"], [1], sampling),
            tiny_model.sample(["a red circle"], [2], sampling),
            tiny_model.sample(["a red circle"], [1], Sampling(6, 8.0)),
            tiny_model.sample(["a red circle"], [1], Sampling(2, 3.0)),
        ]
        assert [other for other in others if (reference - other).abs().max() < 10 * STEP] == []

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_an_image_does_not_depend_on_its_batch(self, tiny_model: TextToImage, scheduler: str) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        together = tiny_model.sample(PROMPTS, SEEDS, sampling)
        assert_same(together[1:2], tiny_model.sample(PROMPTS[1:2], SEEDS[1:2], sampling))

    @pytest.mark.parametrize("scheduler", STOCHASTIC)
    def test_stochastic_schedulers_draw_from_the_images_own_seed(self, tiny_model: TextToImage, scheduler: str) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        images = tiny_model.sample(["a red circle"] * 2, [1, 1], sampling)
        torch.testing.assert_close(images[0], images[1], rtol=0, atol=STEP)
        assert (images[0] - tiny_model.sample(["a red circle"], [2], sampling)).abs().max() > 10 * STEP

    @pytest.mark.parametrize("scheduler", ["PNDMScheduler", "UniPCMultistepScheduler", *STOCHASTIC])
    def test_repeats_bit_for_bit_and_leaves_global_randomness_alone(
        self, tiny_model: TextToImage, scheduler: str
    ) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = tiny_model.sample(PROMPTS, SEEDS, sampling)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(2)
        assert torch.equal(first, tiny_model.sample(PROMPTS, SEEDS, sampling))

    def test_guidance_is_one_batched_forward_and_none_saves_the_negative_half(self, fresh_model: TextToImage) -> None:
        sizes: list[int] = []
        fresh_model.denoiser.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
        fresh_model.sample(PROMPTS, SEEDS, Sampling(4, 5.0))
        assert sizes == [6] * 4
        sizes.clear()
        fresh_model.sample(PROMPTS, SEEDS, Sampling(4, 1.0))
        assert sizes == [3] * 4

    def test_each_different_prompt_is_encoded_once(
        self, tiny_model: TextToImage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded: list[str] = []
        encode = StableDiffusion.encode_prompts

        def spy(self: StableDiffusion, prompts: Sequence[str]) -> Tensor:
            encoded.extend(prompts)
            return encode(self, prompts)

        monkeypatch.setattr(StableDiffusion, "encode_prompts", spy)
        tiny_model.sample(PROMPTS, SEEDS, Sampling(2, 5.0))
        assert sorted(encoded) == ["", "a red circle", "two blue stars"]

    def test_gives_no_gradient_even_where_the_denoiser_trains(self, fresh_model: TextToImage) -> None:
        fresh_model.denoiser.requires_grad_(True)
        assert not fresh_model.sample(["a red circle"], [1], Sampling(2, 3.0)).requires_grad

    @pytest.mark.parametrize(("prompts", "seeds"), [([], []), (["a", "b"], [1]), (["a"], [1, 2])])
    def test_prompts_and_seeds_must_pair(self, tiny_model: TextToImage, prompts: list[str], seeds: list[int]) -> None:
        with pytest.raises(ValueError, match=f"{len(prompts)} prompts came with {len(seeds)} seeds"):
            tiny_model.sample(prompts, seeds, Sampling(2, 3.0))

    def test_a_mistyped_scheduler_is_told_the_nearest(self, tiny_model: TextToImage) -> None:
        with pytest.raises(ValueError, match=r"'DDIMSchedular' is not .* Did you mean DDIMScheduler"):
            tiny_model.sample(["a"], [1], Sampling(2, 3.0, scheduler="DDIMSchedular"))

    def test_a_scheduler_with_one_noise_for_the_batch_is_refused(self, tiny_model: TextToImage) -> None:
        with pytest.raises(ValueError, match="each image from its own seed.* These can: DDIMScheduler, "):
            tiny_model.sample(["a"], [1], Sampling(2, 3.0, scheduler="DPMSolverSDEScheduler"))


class TestPrompts:
    def test_embeddings_equal_the_bare_pipelines(self, tiny_folder: Path, tiny_model: TextToImage) -> None:
        prompts = ["a red circle", "x" * 60]
        theirs = bare_pipeline(tiny_folder).encode_prompt(prompts, CPU, 1, False)[0]
        assert torch.equal(tiny_model.encode_prompts(prompts), theirs)

    def test_prompts_beyond_the_limit_are_counted(self, tiny_model: TextToImage) -> None:
        fitting, too_long = "x" * 22, "x" * 23  # 24 tokens, of which one begins and one ends
        assert tiny_model.count_truncated([fitting, too_long, "a", too_long]) == 2
        assert torch.equal(*tiny_model.encode_prompts([too_long, too_long + "y"]).chunk(2))


class TestLatents:
    @pytest.fixture
    def images(self) -> Tensor:
        return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def test_encoding_is_the_scaled_mean(self, tiny_folder: Path, tiny_model: TextToImage, images: Tensor) -> None:
        vae = bare_pipeline(tiny_folder).vae
        expected = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(tiny_model.encode_images(images), expected)

    def test_decoding_is_the_clamped_picture(self, tiny_folder: Path, tiny_model: TextToImage) -> None:
        vae = bare_pipeline(tiny_folder).vae
        latents = 3 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = (vae.decode(latents / vae.config.scaling_factor).sample + 1) / 2
        assert expected.min() < 0 and expected.max() > 1
        torch.testing.assert_close(tiny_model.decode_latents(latents), expected.clamp(0, 1))

    def test_memory_bound_does_not_change_them(
        self, tiny_model: TextToImage, images: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        latents = tiny_model.encode_images(images)
        decoded = tiny_model.decode_latents(latents)
        monkeypatch.setattr(stable_diffusion, "PIXELS_AT_ONCE", 1)
        torch.testing.assert_close(tiny_model.encode_images(images), latents)
        torch.testing.assert_close(tiny_model.decode_latents(latents), decoded)

    def test_decoding_carries_gradients(self, tiny_model: TextToImage) -> None:
        latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
        tiny_model.decode_latents(latents).sum().backward()
        assert latents.grad is not None and latents.grad.abs().max() > 0

    def test_half_precision_weights_give_float32(self, tiny_folder: Path, images: Tensor) -> None:
        model = load_model(tiny_folder, CPU, torch.bfloat16)
        latents = model.encode_images(images)
        prediction = model.predict(latents, torch.tensor([1, 2, 3]), model.encode_prompts(PROMPTS))
        assert latents.dtype == prediction.dtype == model.decode_latents(latents).dtype == torch.float32
        assert model.encode_prompts(PROMPTS).dtype == torch.bfloat16


class TestNoise:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 500, 999])

    def levels(self) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of Stable Diffusion's schedule, from its definition."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alpha_bar = (1 - betas).cumprod(0)[self.timesteps].view(3, 1, 1, 1)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def test_noise_is_added_as_in_the_paper(self, tiny_model: TextToImage) -> None:
        alpha_t, sigma_t = self.levels()
        expected = alpha_t * self.latents + sigma_t * self.noise
        noisy = tiny_model.add_noise(self.latents, self.noise, self.timesteps)
        torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-5)
        assert tiny_model.num_train_timesteps == 1000

    def test_epsilon_target_is_the_noise(self, tiny_model: TextToImage) -> None:
        assert tiny_model.prediction_type == "epsilon"
        assert torch.equal(tiny_model.target(self.latents, self.noise, self.timesteps), self.noise)

    def test_v_target_gives_back_latents_and_noise(self, tiny_v_folder: Path) -> None:
        model = load_model(tiny_v_folder, CPU)
        alpha_t, sigma_t = self.levels()
        x_t = model.add_noise(self.latents, self.noise, self.timesteps)
        v = model.target(self.latents, self.noise, self.timesteps)
        assert model.prediction_type == "v_prediction"
        torch.testing.assert_close(v, alpha_t * self.noise - sigma_t * self.latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(alpha_t * x_t - sigma_t * v, self.latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(sigma_t * x_t + alpha_t * v, self.noise, rtol=0, atol=1e-5)

    def test_prediction_is_the_denoisers_and_carries_gradients(
        self, tiny_folder: Path, tiny_model: TextToImage
    ) -> None:
        embeddings = tiny_model.encode_prompts(PROMPTS)
        expected = bare_pipeline(tiny_folder).unet(self.latents, self.timesteps, embeddings).sample
        noisy = self.latents.clone().requires_grad_()
        prediction = tiny_model.predict(noisy, self.timesteps, embeddings)
        torch.testing.assert_close(prediction, expected)
        prediction.sum().backward()
        assert noisy.grad is not None and noisy.grad.abs().max() > 0


class TestModel:
    def test_says_what_it_is(self, tiny_model: TextToImage) -> None:
        assert (tiny_model.resolution, tiny_model.denoiser_name, tiny_model.device) == (16, "unet", CPU)
        names = [name for name, _ in tiny_model.denoiser.named_modules()]
        assert all(any(name.endswith(target) for name in names) for target in tiny_model.lora_target_modules)

    def test_is_frozen_and_in_evaluation_mode(self, tiny_model: TextToImage) -> None:
        assert not any(parameter.requires_grad for parameter in tiny_model.denoiser.parameters())
        assert not tiny_model.denoiser.training
