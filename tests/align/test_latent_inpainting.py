"""Inpainting with each kind of Stable Diffusion: against diffusers' own pipeline, and against a perfect denoiser."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from torch import Tensor

from align.families.latent_inpainting import check_inpainting, last_timesteps, latent_mask, repaint_latents
from align.families.load import load_model
from align.families.stable_diffusion import SCHEDULERS
from align.model import Sampling, TextToImage
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
KINDS = {"epsilon": ("epsilon", 0, 4), "v": ("v_prediction", 1, 4), "dedicated": ("epsilon", 2, 9)}
PROMPTS, SEEDS = ("a red circle", "two blue stars"), (1, 2)
STEP = 1 / 255
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
SOME = ("DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", *STOCHASTIC)
SECOND_ORDER = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")

# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    return {kind: save_tiny_model(root / kind, *how) for kind, how in KINDS.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, TextToImage]:
    """They are not to be changed."""
    return {kind: load_model(folder, CPU) for kind, folder in folders.items()}


@pytest.fixture
def folder(folders: dict[str, Path], kind: str) -> Path:
    return folders[kind]


@pytest.fixture
def model(models: dict[str, TextToImage], kind: str) -> TextToImage:
    return models[kind]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks() -> Tensor:
    """The upper left of the first image, the right half of the second: whole latents of 2 x 2 pixels."""
    masks = torch.zeros(2, 16, 16)
    masks[0, :10, :6] = 1
    masks[1, :, 8:] = 1
    return masks


def theirs(
    folder: Path, model: TextToImage, images: Tensor, masks: Tensor, strength: float, sampling: Sampling
) -> Tensor:
    """What diffusers' pipeline paints from the same latents; where its loop lets go of the original, it is put back."""
    pipe: Any = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    config = {**pipe.scheduler.config, "skip_prk_steps": True}
    pipe.scheduler = getattr(diffusers, sampling.scheduler or "DDIMScheduler").from_config(config)
    original, generators = model.encode_images(images), [torch.Generator().manual_seed(seed) for seed in SEEDS]
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    mask = latent_mask(masks, 8, 8)

    def hold(pipe: Any, step: int, t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        later = pipe.scheduler.timesteps[-pipe.num_timesteps :][step + 1 : step + 2]
        known = pipe.scheduler.add_noise(original, noise, later) if len(later) else original
        return {"latents": (1 - mask) * known + mask * state["latents"]}

    return torch.from_numpy(
        pipe(
            list(PROMPTS),
            image=original,
            mask_image=masks[:, None],
            masked_image_latents=model.encode_images(torch.where(masks[:, None] > 0, 0.5, images)),
            strength=strength,
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            generator=generators,
            output_type="np",
            callback_on_step_end=hold,
        ).images
    ).permute(0, 3, 1, 2)


class TestAgainstDiffusers:
    """Not for schedulers of second order, which diffusers blends with the original at a level they are not at."""

    @pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in SECOND_ORDER])
    def test_equals_its_pipeline_from_noise(
        self, folder: Path, model: TextToImage, images: Tensor, masks: Tensor, scheduler: str
    ) -> None:
        sampling = Sampling(6, 4.0, scheduler=scheduler)
        ours = model.inpaint(images, masks, PROMPTS, SEEDS, 1.0, sampling)
        expected = theirs(folder, model, images, masks, 1.0, sampling)
        assert expected.std() > 0.05
        torch.testing.assert_close(ours, expected, rtol=0, atol=STEP)

    @pytest.mark.parametrize(
        "scheduler",
        # diffusers begins the two that are left out with more history than there is, or at the wrong level.
        [name for name in SCHEDULERS if name not in (*SECOND_ORDER, "LMSDiscreteScheduler", "PNDMScheduler")],
    )
    def test_equals_its_pipeline_from_the_image(
        self, folder: Path, model: TextToImage, images: Tensor, masks: Tensor, scheduler: str
    ) -> None:
        sampling = Sampling(8, 1.0, scheduler=scheduler)
        ours = model.inpaint(images, masks, PROMPTS, SEEDS, 0.6, sampling)
        torch.testing.assert_close(ours, theirs(folder, model, images, masks, 0.6, sampling), rtol=0, atol=STEP)


class TestInpaint:
    @pytest.mark.parametrize("scheduler", SOME)
    @pytest.mark.parametrize("strength", [0.5, 1.0])
    def test_a_mask_of_zeros_gives_the_image_up_to_the_autoencoder(
        self, model: TextToImage, images: Tensor, scheduler: str, strength: float
    ) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        painted = model.inpaint(images, torch.zeros(2, 16, 16), PROMPTS, SEEDS, strength, sampling)
        torch.testing.assert_close(painted, model.decode_latents(model.encode_images(images)))

    @pytest.mark.parametrize("scheduler", SOME)
    def test_an_image_depends_on_its_seed_not_on_its_batch(
        self, model: TextToImage, images: Tensor, masks: Tensor, scheduler: str
    ) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        together = model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, sampling)
        alone = model.inpaint(images[1:], masks[1:], PROMPTS[1:], SEEDS[1:], 0.7, sampling)
        torch.testing.assert_close(together[1:], alone, rtol=0, atol=STEP)
        other = model.inpaint(images[1:], masks[1:], PROMPTS[1:], (3,), 0.7, sampling)
        assert (alone - other).abs().max() > 10 * STEP

    @pytest.mark.parametrize("scheduler", ["PNDMScheduler", "UniPCMultistepScheduler", *STOCHASTIC])
    def test_repeats_bit_for_bit_and_leaves_global_randomness_alone(
        self, model: TextToImage, images: Tensor, masks: Tensor, scheduler: str
    ) -> None:
        sampling = Sampling(6, 3.0, scheduler=scheduler)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, sampling)
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(2)
        assert torch.equal(first, model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, sampling))

    def test_strength_is_the_share_of_the_steps(self, folder: Path, images: Tensor, masks: Tensor) -> None:
        model = load_model(folder, CPU)
        steps: list[int] = []
        model.denoiser.register_forward_pre_hook(lambda _, arguments: steps.append(len(arguments[0])))
        expected = {0.1: 1, 0.25: 2, 0.5: 5, 0.99: 9, 1.0: 10}
        for strength, count in expected.items():
            steps.clear()
            model.inpaint(images, masks, PROMPTS, SEEDS, strength, Sampling(10, 3.0))
            assert steps == [4] * count

    def test_prompt_guidance_negative_prompt_and_strength_matter(
        self, model: TextToImage, images: Tensor, masks: Tensor
    ) -> None:
        plain = Sampling(6, 3.0)
        first = model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, plain)
        others = [
            model.inpaint(images, masks, PROMPTS[::-1], SEEDS, 0.7, plain),
            model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, Sampling(6, 8.0)),
            model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, Sampling(6, 3.0, "ugly, grey")),
            model.inpaint(images, masks, PROMPTS, SEEDS, 1.0, plain),
        ]
        assert [other for other in others if (first - other).abs().max() < 5 * STEP] == []

    def test_half_precision_weights_give_float32(self, folder: Path, images: Tensor, masks: Tensor) -> None:
        model = load_model(folder, CPU, torch.bfloat16)
        for name in SCHEDULERS:
            painted = model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, Sampling(4, 3.0, scheduler=name))
            assert painted.dtype == torch.float32 and bool(painted.isfinite().all()), name

    def test_gives_no_gradient(self, model: TextToImage, images: Tensor, masks: Tensor) -> None:
        images = images.requires_grad_()
        assert not model.inpaint(images, masks, PROMPTS, SEEDS, 0.7, Sampling(2, 3.0)).requires_grad


class TestDedicated:
    @pytest.fixture
    def kind(self) -> str:
        return "dedicated"

    def test_is_shown_the_mask_and_the_rest_of_the_image(self, folder: Path, images: Tensor, masks: Tensor) -> None:
        model = load_model(folder, CPU)
        seen: list[Tensor] = []
        model.denoiser.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        model.inpaint(images, masks / 2, PROMPTS, SEEDS, 0.5, Sampling(4, 1.0))
        rest = images.where(masks[:, None] == 0, 0.5)
        assert [tuple(x.shape) for x in seen] == [(2, 9, 8, 8)] * 2
        assert all(torch.equal(x[:, 4:5], masks[:, None, ::2, ::2]) for x in seen)
        torch.testing.assert_close(seen[-1][:, 5:], model.encode_images(rest))

    def test_neither_samples_nor_predicts(self, model: TextToImage, images: Tensor) -> None:
        with pytest.raises(ValueError, match="This model only inpaints"):
            model.sample(PROMPTS, SEEDS, Sampling(2, 3.0))
        with pytest.raises(ValueError, match="This model only inpaints"):
            model.predict(model.encode_images(images), torch.tensor([1, 2]), model.encode_prompts(PROMPTS))


class TestRepaintLatents:
    """A denoiser that knows the noise follows the original down all levels, so the two sides of a mask must agree."""

    original = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(1)).expand(2, 4, 4, 8)
    noise = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(2)).expand(2, 4, 4, 8)
    half = torch.tensor([1.0, 0.0]).repeat_interleave(4).expand(2, 1, 4, 8)

    def scheduler(self, name: str, steps: int, **changes: Any) -> Any:
        beta: Any = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        scheduler = getattr(diffusers, name)(**beta, **changes)
        scheduler.set_timesteps(steps)
        return scheduler

    def run(self, scheduler: Any, mask: Tensor, strength: float, answer: Tensor | None = None) -> list[Tensor]:
        """The latents that the denoiser saw, before they were scaled for it, and what came out."""
        seen: list[Tensor] = []

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            seen.append(x)
            return self.noise if answer is None else answer

        scheduler.scale_model_input = lambda x, t: x  # pyright: ignore[reportUnknownLambdaType]
        scheduler.is_scale_input_called = True
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        end = repaint_latents(denoise, scheduler, self.original, mask, generators, self.noise, strength)
        return [*seen, end]

    @pytest.mark.parametrize("strength", [0.2, 0.7])
    @pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in STOCHASTIC])
    def test_the_original_is_at_the_level_of_what_is_painted(self, name: str, strength: float) -> None:
        *seen, end = self.run(self.scheduler(name, 10), self.half, strength)
        for x in seen:
            torch.testing.assert_close(x[..., :4], x[..., 4:], rtol=0, atol=2e-3)
        assert torch.equal(end[..., 4:], self.original[..., 4:])
        torch.testing.assert_close(end[..., :4], self.original[..., :4], rtol=0, atol=0.05)  # DDIM ends above no noise

    def test_timesteps_that_repeat_are_told_apart(self) -> None:
        scheduler = self.scheduler("DPMSolverMultistepScheduler", 80, use_karras_sigmas=True)
        kept = scheduler.timesteps[40:].tolist()
        assert len(set(kept)) < len(kept)
        for x in self.run(scheduler, self.half, 0.5):
            torch.testing.assert_close(x[..., :4], x[..., 4:], rtol=0, atol=2e-3)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_what_is_outside_of_the_mask_does_not_depend_on_the_denoiser(self, name: str) -> None:
        first = self.run(self.scheduler(name, 6), self.half, 0.7)
        second = self.run(self.scheduler(name, 6), self.half, 0.7, answer=-self.noise)
        assert torch.equal(first[-1][..., 4:], self.original[..., 4:])
        assert torch.equal(second[-1][..., 4:], self.original[..., 4:])
        assert not torch.allclose(first[-1][..., :4], second[-1][..., :4], atol=0.1)

    def test_a_soft_mask_frees_a_place_for_that_share_of_the_steps(self) -> None:
        mask = torch.tensor([1.0, 0.75, 0.6, 0.5, 0.25, 0.1, 0.01, 0.0]).expand(2, 1, 4, 8)
        free = [self.run(self.scheduler("DDIMScheduler", 8), mask, 0.5, answer) for answer in (None, -self.noise)]
        differs = [(first != second).any(dim=1)[0, 0].int().tolist() for first, second in zip(*free, strict=True)]
        assert differs == [  # at the levels of 4, 3, 2, 1 and 0 steps that are left
            [0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 1, 1, 1, 0],
        ]

    @pytest.mark.parametrize("name", SCHEDULERS)
    @pytest.mark.parametrize("steps", [1, 2, 3, 6])
    def test_the_last_timesteps_are_the_end_of_the_schedule(self, name: str, steps: int) -> None:
        scheduler = self.scheduler(name, 6)
        if name == "PNDMScheduler":
            first, *others = self.scheduler(name, 6, skip_prk_steps=True).timesteps.unique().flip(0)[-steps:].tolist()
            expected = [first, *others[:1], *others]
        else:
            expected = scheduler.timesteps[(6 - steps) * scheduler.order :].tolist()
        assert last_timesteps(scheduler, steps / 6).tolist() == expected


class TestMask:
    def test_a_latent_is_repainted_as_its_most_repainted_pixel(self) -> None:
        masks = torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(0))
        small = latent_mask(masks, 2, 3)
        expected = [[[[float(masks[n, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].max()) for j in range(3)]
                      for i in range(2)]] for n in range(2)]  # fmt: skip
        assert small.tolist() == expected


class TestErrors:
    @pytest.fixture
    def kind(self) -> str:
        return "epsilon"

    def test_numbers_must_agree(self, model: TextToImage, images: Tensor, masks: Tensor) -> None:
        with pytest.raises(ValueError, match="2 images, 2 masks, 2 prompts, 1 seeds; give at least one"):
            model.inpaint(images, masks, PROMPTS, SEEDS[:1], 0.5, Sampling(2, 3.0))
        with pytest.raises(ValueError, match="0 images, 0 masks, 0 prompts, 0 seeds; give at least one"):
            model.inpaint(images[:0], masks[:0], (), (), 0.5, Sampling(2, 3.0))

    @pytest.mark.parametrize(("height", "width", "mask_side"), [(32, 32, 32), (16, 24, 16), (16, 16, 8)])
    def test_sizes_are_the_models(self, height: int, width: int, mask_side: int) -> None:
        images, masks = torch.zeros(1, 3, height, width), torch.zeros(1, mask_side, mask_side)
        with pytest.raises(ValueError, match="the model takes 16 x 16. Crop and scale"):
            check_inpainting(images, masks, ["a"], [1], 0.5, Sampling(2, 3.0), 16)

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_mask_values(self, model: TextToImage, images: Tensor, value: float) -> None:
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            model.inpaint(images, torch.full((2, 16, 16), value), PROMPTS, SEEDS, 0.5, Sampling(2, 3.0))

    @pytest.mark.parametrize("strength", [0.0, -1.0, 1.1, 0.4, float("nan")])
    def test_strength_leaves_a_step(self, model: TextToImage, images: Tensor, masks: Tensor, strength: float) -> None:
        with pytest.raises(ValueError, match=f"strength is {strength} of 2 steps"):
            model.inpaint(images, masks, PROMPTS, SEEDS, strength, Sampling(2, 3.0))

    def test_an_unsupported_scheduler(self, model: TextToImage, images: Tensor, masks: Tensor) -> None:
        with pytest.raises(ValueError, match="is not a scheduler that can draw each image"):
            model.inpaint(images, masks, PROMPTS, SEEDS, 0.5, Sampling(2, 3.0, scheduler="DPMSolverSDEScheduler"))
