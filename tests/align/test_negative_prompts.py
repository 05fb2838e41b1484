"""Several negative prompts: against diffusers' own loops, whose negative half is averaged by hand; their record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.families.load import load_model
from align.generate import generate
from align.log import Log
from align.lora import REWARD_TOKEN, inject, read_reward_token, save_lora, token_header
from align.model import Sampling, TextToImage, weighted_texts
from tests.align.test_latent_inpainting import KINDS, theirs
from tests.align.test_stable_diffusion import PROMPTS, SEEDS, STEP, assert_same, bare_pipeline, pictures
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
NEGATIVES = {"ugly, grey": 1.0, "two dogs": 0.5, "": 2.25}
BAD = [{"a": 0.0}, {"a": 1.0, "b": -0.5}, {"a": float("nan")}, {"a": 1.0, "b": float("inf")}, {"a": 1e308, "b": 1e308}]

# diffusers' schedulers give torch tensors to numpy in a way that numpy 2 has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that predicts noise, one that predicts v, and one that only inpaints."""
    return save_tiny_model(tmp_path_factory.mktemp("kind"), *KINDS[request.param])


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextToImage], None]:
    """Let the negative half of a pipeline's batch be the mean of one forward for each of NEGATIVES."""
    forward = UNet2DConditionModel.forward

    def patch(model: TextToImage) -> None:
        conditions = {text: model.encode_prompts([text]) for text in NEGATIVES}

        def averaged(unet: Any, x_t: Tensor, t: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> tuple[Tensor]:
            (x_negative, x_prompt), prompts = x_t.chunk(2), encoder_hidden_states.chunk(2)[1]
            mean = torch.zeros_like(x_prompt[:, :4])
            for text, weight in NEGATIVES.items():
                condition = conditions[text].expand_as(prompts)
                mean += weight * forward(unet, x_negative, t, condition, return_dict=False)[0]
            mean /= 1.0 + 0.5 + 2.25
            return (torch.cat([mean, forward(unet, x_prompt, t, prompts, return_dict=False)[0]]),)

        monkeypatch.setattr(UNet2DConditionModel, "forward", averaged)

    return patch


def picture(model: TextToImage, negative_prompt: Any, scheduler: str | None = None) -> Tensor:
    return model.sample(PROMPTS, SEEDS, Sampling(6, 5.0, negative_prompt, scheduler))


class TestAgainstSeparateForwards:
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
    def test_sample(
        self, tiny_folder: Path, tiny_model: TextToImage, average: Callable[[TextToImage], None], scheduler: str
    ) -> None:
        ours = picture(tiny_model, NEGATIVES, scheduler)
        average(tiny_model)
        plain = Sampling(6, 5.0, scheduler=scheduler)
        assert_same(ours, pictures(bare_pipeline(tiny_folder, scheduler), PROMPTS, SEEDS, plain))

    def test_inpaint(self, folder: Path, average: Callable[[TextToImage], None]) -> None:
        model = load_model(folder, CPU)
        images, masks = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 16, 16)
        masks[0, :10, :6] = masks[1, :, 8:] = 1
        prompts, seeds = ("a red circle", "two blue stars"), (1, 2)
        ours = model.inpaint(images, masks, prompts, seeds, 0.7, Sampling(8, 5.0, NEGATIVES))
        alone = model.inpaint(images, masks, prompts, seeds, 0.7, Sampling(8, 5.0, "ugly, grey"))
        average(model)
        assert_same(ours, theirs(folder, model, images, masks, 0.7, Sampling(8, 5.0)))
        assert (ours - alone).abs().max() > 2 * STEP


def test_each_of_them_and_its_weight_matter(tiny_model: TextToImage) -> None:
    reference = picture(tiny_model, NEGATIVES)
    others = [{"ugly, grey": 1.0, "two dogs": 0.5}, NEGATIVES | {"two dogs": 4.0}, *NEGATIVES]
    assert [other for other in others if (reference - picture(tiny_model, other)).abs().max() < 2 * STEP] == []


def test_neither_the_order_nor_the_scale_of_the_weights_matters(tiny_model: TextToImage) -> None:
    reference = picture(tiny_model, NEGATIVES)
    assert torch.equal(reference, picture(tiny_model, dict(reversed(NEGATIVES.items()))))
    tripled = picture(tiny_model, {text: 3 * weight for text, weight in NEGATIVES.items()})
    torch.testing.assert_close(tripled, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_alone_is_bit_for_bit_the_guidance_of_a_single_batch_of_two(tiny_folder: Path, dtype: torch.dtype) -> None:
    model = load_model(tiny_folder, CPU, dtype)
    unet: Any = model.denoiser
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(_: Any, arguments: tuple[Any, ...], output: tuple[Tensor]) -> None:
        calls.append((*arguments[1:3], output[0]))

    hook = unet.register_forward_hook(keep)
    weighted = picture(model, {"ugly, grey": 0.3}, "DDIMScheduler")
    hook.remove()
    scheduler: Any = bare_pipeline(tiny_folder, "DDIMScheduler").scheduler
    scheduler.set_timesteps(6)
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype) for seed in SEEDS]
    x_t, embeddings = torch.cat(noise), model.encode_prompts(sorted(set(PROMPTS)))[[0, 1, 0]]
    both = torch.cat([model.encode_prompts(["ugly, grey"]).expand_as(embeddings), embeddings])
    for t, condition, output in calls:
        assert torch.equal(condition, both)
        with torch.no_grad():
            assert torch.equal(output, unet(torch.cat([x_t, x_t]), t, both, return_dict=False)[0])
        e_negative, e_prompt = output.chunk(2)
        x_t = scheduler.step(e_negative + 5.0 * (e_prompt - e_negative), t, x_t, return_dict=False)[0]
    assert torch.equal(weighted, model.decode_latents(x_t.float()))
    assert torch.equal(weighted, picture(model, "ugly, grey", "DDIMScheduler"))


def test_all_are_one_batched_forward_and_no_guidance_reads_none(fresh_model: TextToImage) -> None:
    sizes: list[int] = []
    fresh_model.denoiser.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    picture(fresh_model, NEGATIVES)
    assert sizes == [(3 + 1) * len(PROMPTS)] * 6
    sizes.clear()
    plain = fresh_model.sample(PROMPTS, SEEDS, Sampling(4, 1.0))
    assert torch.equal(plain, fresh_model.sample(PROMPTS, SEEDS, Sampling(4, 1.0, NEGATIVES)))
    assert sizes == [len(PROMPTS)] * 8


class TestSampling:
    def test_a_mapping_of_one_is_that_text_whatever_its_weight(self) -> None:
        sampling = Sampling(4, 3.0, {"grey": 7.0})
        assert sampling == Sampling(4, 3.0, "grey") and sampling.negative_prompt == "grey"
        assert sampling.negative_shares == {"grey": 1.0}

    def test_shares_are_sorted_and_sum_to_one(self) -> None:
        assert list(Sampling(4, 3.0, NEGATIVES).negative_shares.items()) == [
            ("", 2.25 / 3.75),
            ("two dogs", 0.5 / 3.75),
            ("ugly, grey", 1.0 / 3.75),
        ]

    def test_does_not_change_with_what_it_was_made_from(self) -> None:
        given = dict(NEGATIVES)
        sampling = Sampling(4, 3.0, given)
        given["two dogs"] = 9.0
        assert sampling.negative_prompt == NEGATIVES

    @pytest.mark.parametrize("weights", BAD)
    def test_weights_that_are_none_are_refused(self, weights: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="weights of texts are .* each must be finite and above 0"):
            Sampling(4, 3.0, weights)

    def test_a_mapping_of_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="empty; it needs at least one text"):
            Sampling(4, 3.0, {})


class TestRecord:
    @pytest.fixture
    def make(self, tiny_model: TextToImage, tmp_path: Path, log: Log) -> Callable[[Any], Path]:
        def make(negative_prompt: Any) -> Path:
            sampling, accelerator = Sampling(2, 3.0, negative_prompt), Accelerator(cpu=True)
            generate(tiny_model, PROMPTS[:2], 1, tmp_path / "images", 0, 2, sampling, log, accelerator)
            return tmp_path / "images/generation.json"

        return make

    def test_holds_the_texts_with_their_weights_and_is_continued_in_any_order(
        self, make: Callable[[Any], Path]
    ) -> None:
        record = make(NEGATIVES)
        before = record.read_bytes()
        assert json.loads(before)["negative_prompt"] == NEGATIVES
        assert make(dict(reversed(NEGATIVES.items()))).read_bytes() == before

    def test_of_one_is_that_of_the_text(self, make: Callable[[Any], Path]) -> None:
        before = make("grey").read_bytes()
        assert json.loads(before)["negative_prompt"] == "grey"
        assert make({"grey": 0.2}).read_bytes() == before

    @pytest.mark.parametrize("other", [NEGATIVES | {"two dogs": 0.25}, {"ugly, grey": 1.0, "": 2.25}, "ugly, grey"])
    def test_other_weights_or_texts_are_another_experiment(self, make: Callable[[Any], Path], other: Any) -> None:
        before = make(NEGATIVES).read_bytes()
        with pytest.raises(ValueError, match=r"negative_prompt was \{'ugly, grey': 1\.0, .*, is") as refused:
            make(other)
        assert f"is {other}. Go back" in str(refused.value)
        assert make(NEGATIVES).read_bytes() == before


class TestHeader:
    @pytest.fixture
    def lora(self, fresh_model: TextToImage, tmp_path: Path) -> Callable[[dict[str, str]], Path]:
        inject(fresh_model.denoiser, 1, 1, fresh_model.lora_target_modules, 0)
        return lambda header: save_lora(fresh_model, tmp_path, header)

    @pytest.mark.parametrize(
        "token",
        ["Odd one. ", "", "{", '{"a": 1}', {"Odd one. ": 1.0, "Dull image. ": 0.5}, {"ü\n": 1 / 3, '"': 1e-9, "": 2.0}],
    )
    def test_is_read_as_it_was_written(
        self, lora: Callable[[dict[str, str]], Path], token: str | dict[str, float]
    ) -> None:
        assert read_reward_token(lora(token_header(token))) == token

    def test_of_one_is_the_words_themselves(self) -> None:
        assert token_header({"Odd one. ": 0.5}) == token_header("Odd one. ")
        assert token_header("Odd one. ") == {REWARD_TOKEN: "Odd one. ", "modelspec.trigger_phrase": "Odd one."}

    def test_of_several_is_json_and_a_phrase_for_other_programs(self, lora: Callable[[dict[str, str]], Path]) -> None:
        file = lora(token_header({"Odd one. ": 1.0, "Dull image. ": 0.5}))
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata()
        assert json.loads(header[REWARD_TOKEN]) == {"Odd one. ": 1.0, "Dull image. ": 0.5}
        assert header["modelspec.trigger_phrase"] == "Odd one., Dull image."

    @pytest.mark.parametrize("weights", [{}, *BAD])
    def test_weights_that_are_none_are_not_written(self, weights: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="at least one text|finite and above 0"):
            token_header(weights)

    @pytest.mark.parametrize(
        "damaged",
        [
            '{"a": 1',
            "{}",
            '{"a": "1"}',
            '{"a": true}',
            '{"a": 0, "b": 1}',
            '{"a": NaN}',
            '{"a": {"b": 1}}',
            '{"a": 1' + 400 * "0" + "}",
        ],
    )
    def test_damage_is_told(self, lora: Callable[[dict[str, str]], Path], damaged: str) -> None:
        file = lora({})
        save_file(load_file(file), file, {REWARD_TOKEN: damaged})
        with pytest.raises(ValueError, match=r"reward tokens in the header of the LoRA .* are damaged \(") as told:
            read_reward_token(file)
        assert repr(damaged) in str(told.value)


@pytest.mark.parametrize("texts", ["", "grey", {"b": 1.0, "a": 2.0}])
def test_the_form_that_texts_are_kept_in_is_its_own(texts: str | dict[str, float]) -> None:
    assert weighted_texts(texts) == texts
