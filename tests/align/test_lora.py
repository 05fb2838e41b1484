"""LoRA: what goes in comes out again bit for bit, and other programs read what is saved."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.families.load import load_model
from align.generate import generate
from align.log import Log
from align.lora import eject, inject, load_lora, lora_digest, merged, read_reward_token, save_lora, token_header
from align.model import Sampling, TextToImage

CPU = torch.device("cpu")
RANK, ALPHA = 4, 10
NAME = "pytorch_lora_weights.safetensors"


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """What would be trained."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def pretend_training(module: nn.Module, strength: float = 0.3) -> None:
    """Give the LoRA values that change pictures visibly."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trained(module).values():
            parameter.add_(strength * torch.randn(parameter.shape, generator=generator))


def picture(model: TextToImage) -> Tensor:
    return model.sample(["a red circle", "two blue stars"], [1, 2], Sampling(6, 5.0))


def inject_into(model: TextToImage, seed: int = 0) -> None:
    inject(model.denoiser, RANK, ALPHA, model.lora_target_modules, seed)


class TestInject:
    def test_starts_without_any_effect(self, tiny_model: TextToImage, fresh_model: TextToImage) -> None:
        inject_into(fresh_model)
        assert torch.equal(picture(fresh_model), picture(tiny_model))

    def test_only_the_lora_is_trained_and_it_covers_each_target(self, fresh_model: TextToImage) -> None:
        targets = [
            name
            for name, module in fresh_model.denoiser.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(fresh_model.lora_target_modules)
        ]
        inject_into(fresh_model)
        parts = {f"{target}.lora_{part}.default.weight" for target in targets for part in "AB"}
        assert trained(fresh_model.denoiser).keys() == parts
        assert len(targets) == 32  # 4 blocks with attention to self and text, of 4 projections each

    def test_is_the_low_rank_update_of_the_paper(self) -> None:
        module, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(2, 5)
        before = module(x).detach()
        inject(module, RANK, ALPHA, ["0"], seed=0)
        pretend_training(module)
        a, b = (trained(module)[f"0.lora_{part}.default.weight"] for part in "AB")
        torch.testing.assert_close(module(x) - before, x @ (ALPHA / RANK * b @ a).T)

    def test_values_follow_from_the_seed_alone(self, tiny_folder: Path) -> None:
        digests: list[bytes] = []
        for noise, seed in [(1, 5), (2, 5), (2, 6)]:
            model = load_model(tiny_folder, CPU)
            torch.manual_seed(noise)
            state = torch.get_rng_state()
            inject_into(model, seed)
            assert torch.equal(torch.get_rng_state(), state)
            digests.append(lora_digest(model.denoiser))
        assert digests[0] == digests[1] != digests[2]

    def test_a_starts_normal_and_b_zero(self) -> None:
        layer = nn.Sequential(nn.Linear(2000, 3))
        inject(layer, RANK, ALPHA, ["0"], seed=0)
        a, b = (trained(layer)[f"0.lora_{part}.default.weight"] for part in "AB")
        assert a.std().item() == pytest.approx(1 / RANK, rel=0.05)
        assert a.mean().item() == pytest.approx(0, abs=4 / RANK / math.sqrt(a.numel()))
        assert b.eq(0).all()

    def test_is_float32_beside_half_precision_weights(self, tiny_folder: Path) -> None:
        model = load_model(tiny_folder, CPU, torch.bfloat16)
        inject_into(model)
        assert {parameter.dtype for parameter in trained(model.denoiser).values()} == {torch.float32}
        noisy = torch.zeros(1, 4, 8, 8)
        prediction = model.predict(noisy, torch.tensor([500]), model.encode_prompts(["a"]))
        prediction.sum().backward()
        gradients = [parameter.grad for name, parameter in trained(model.denoiser).items() if "lora_B" in name]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)

    def test_a_second_one_is_refused(self, fresh_model: TextToImage) -> None:
        inject_into(fresh_model)
        with pytest.raises(ValueError, match="has a LoRA already.* Eject it first"):
            inject_into(fresh_model)

    def test_a_target_that_is_nowhere_is_named_with_those_that_are(self, tiny_model: TextToImage) -> None:
        with pytest.raises(ValueError, match=r"No layer of UNet2DConditionModel is called to_kk; .*to_k, to_q"):
            inject(tiny_model.denoiser, RANK, ALPHA, ["to_q", "to_kk"], seed=0)
        with pytest.raises(ValueError, match="nothing was named"):
            inject(tiny_model.denoiser, RANK, ALPHA, [], seed=0)

    def test_a_rank_below_one_is_refused(self, tiny_model: TextToImage) -> None:
        with pytest.raises(ValueError, match="rank is 0; a LoRA needs a rank of at least 1"):
            inject(tiny_model.denoiser, 0, ALPHA, ["to_q"], seed=0)


class TestEject:
    def test_leaves_the_module_bit_for_bit_as_it_was(self, tiny_model: TextToImage, fresh_model: TextToImage) -> None:
        parameters = dict(fresh_model.denoiser.named_parameters())
        inject_into(fresh_model)
        pretend_training(fresh_model.denoiser)
        assert not torch.equal(picture(fresh_model), picture(tiny_model))
        eject(fresh_model.denoiser)
        after = dict(fresh_model.denoiser.named_parameters())
        assert after.keys() == parameters.keys()
        assert all(after[name] is parameters[name] for name in parameters)
        values = tiny_model.denoiser.state_dict()
        assert all(torch.equal(value, values[name]) for name, value in fresh_model.denoiser.state_dict().items())
        assert torch.equal(picture(fresh_model), picture(tiny_model))
        assert fresh_model.fingerprint == tiny_model.fingerprint

    def test_makes_room_for_another(self, fresh_model: TextToImage) -> None:
        inject_into(fresh_model)
        first = lora_digest(fresh_model.denoiser)
        eject(fresh_model.denoiser)
        assert lora_digest(fresh_model.denoiser) == b""
        inject_into(fresh_model)
        assert lora_digest(fresh_model.denoiser) == first

    def test_works_on_any_module(self) -> None:
        module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
        names = [(name, type(child)) for name, child in module.named_modules()]
        inject(module, 2, 2, ["1.1"], seed=0)
        assert len(trained(module)) == 2
        eject(module)
        assert [(name, type(child)) for name, child in module.named_modules()] == names


@torch.no_grad()
def prediction(model: TextToImage) -> Tensor:
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return model.predict(x_t, torch.tensor([700, 200]), model.encode_prompts(["a red circle", "two blue stars"]))


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_merged_lora_draws_the_same_and_leaves_every_bit(fresh_model: TextToImage, tiny_model: TextToImage) -> None:
    inject_into(fresh_model)
    pretend_training(fresh_model.denoiser)
    before, apart, digest = bits(fresh_model.denoiser), prediction(fresh_model), lora_digest(fresh_model.denoiser)
    with merged(fresh_model.denoiser):
        together = prediction(fresh_model)
        assert lora_digest(fresh_model.denoiser) == digest
        for name, layer in fresh_model.denoiser.named_modules():
            if isinstance(layer, LoraLayer):
                parts: Any = (layer.lora_A["default"], layer.lora_B["default"])
                down, up = (part.weight.double() for part in parts)
                expected = before[f"{name}.base_layer.weight"].double() + ALPHA / RANK * up @ down
                torch.testing.assert_close(layer.get_base_layer().weight.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-3)
    assert not torch.equal(together, apart) and (together - prediction(tiny_model)).abs().max() > 0.1
    with pytest.raises(InterruptedError), merged(fresh_model.denoiser):
        raise InterruptedError
    assert all(torch.equal(value, before[name]) for name, value in bits(fresh_model.denoiser).items())
    assert torch.equal(prediction(fresh_model), apart)


def test_a_lora_is_not_merged_into_weights_that_are_too_coarse_for_it(fresh_model: TextToImage) -> None:
    inject_into(fresh_model)
    pretend_training(fresh_model.denoiser)
    for layer in fresh_model.denoiser.modules():
        if isinstance(layer, LoraLayer):
            layer.get_base_layer().bfloat16()
    before = bits(fresh_model.denoiser)
    with merged(fresh_model.denoiser):
        assert all(torch.equal(value, before[name]) for name, value in bits(fresh_model.denoiser).items())


def test_generation_merges_the_lora(
    fresh_model: TextToImage, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_into(fresh_model)
    pretend_training(fresh_model.denoiser)
    before, sampling, sample = bits(fresh_model.denoiser), Sampling(6, 5.0), fresh_model.sample
    layers = [layer for layer in fresh_model.denoiser.modules() if isinstance(layer, LoraLayer)]
    seen: list[bool] = []

    def watched(prompts: list[str], seeds: list[int], sampling: Sampling) -> Tensor:
        seen.extend(layer.merged for layer in layers)
        return sample(prompts, seeds, sampling)

    monkeypatch.setattr(fresh_model, "sample", watched)
    store = generate(fresh_model, ["a cat"], 2, tmp_path / "out", 0, 2, sampling, log, Accelerator(cpu=True))
    assert len(seen) == len(layers) == 32 and all(seen) and not any(layer.merged for layer in layers)
    with merged(fresh_model.denoiser):
        expected = sample(["a cat"] * 2, [row.seed for row in store.rows()], sampling)
    assert (store.load(store.rows()) - expected).abs().max() <= 0.51 / 255
    assert all(torch.equal(value, before[name]) for name, value in bits(fresh_model.denoiser).items())


class TestFile:
    def test_every_kind_of_layer_reaches_a_bare_pipeline(
        self, tiny_folder: Path, fresh_model: TextToImage, tmp_path: Path
    ) -> None:
        inject(fresh_model.denoiser, RANK, ALPHA, ["to_k", "to_out.0", "ff.net.2", "proj_in", "conv1"], seed=0)
        pretend_training(fresh_model.denoiser)
        save_lora(fresh_model, tmp_path)
        pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_folder)
        pipeline.load_lora_weights(tmp_path)
        ours = {name.replace(".default.", "."): value for name, value in trained(fresh_model.denoiser).items()}
        theirs = {name.replace(".default_0.", "."): value for name, value in trained(pipeline.unet).items()}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    @pytest.fixture
    def tuned(self, fresh_model: TextToImage) -> TextToImage:
        inject_into(fresh_model)
        pretend_training(fresh_model.denoiser)
        return fresh_model

    def test_a_bare_pipeline_gives_the_same_picture(
        self, tiny_folder: Path, tiny_model: TextToImage, tuned: TextToImage, tmp_path: Path
    ) -> None:
        assert save_lora(tuned, tmp_path) == tmp_path / NAME
        pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_folder)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(tmp_path)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        prompts = ["a red circle", "two blue stars"]
        images = pipeline(
            prompts, num_inference_steps=6, guidance_scale=5.0, generator=generators, output_type="np"
        ).images
        theirs, ours = torch.from_numpy(images).permute(0, 3, 1, 2), picture(tuned)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1 / 255)
        assert (ours - picture(tiny_model)).abs().max() > 20 / 255

    def test_keys_are_those_of_diffusers_and_alpha_is_in_the_header(self, tuned: TextToImage, tmp_path: Path) -> None:
        with safe_open(save_lora(tuned, tmp_path), framework="pt") as file:
            keys = list(file.keys())
            header = file.metadata()
        assert all(key.startswith("unet.") and key.endswith((".lora.down.weight", ".lora.up.weight")) for key in keys)
        assert header["format"] == "pt"
        assert json.loads(header["lora_adapter_metadata"]) == {
            "unet.init_lora_weights": "gaussian",
            "unet.lora_alpha": ALPHA,
            "unet.r": RANK,
            "unet.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
        }

    def test_words_in_the_header_are_read_and_do_not_matter_to_loading(
        self, tiny_folder: Path, tuned: TextToImage, tmp_path: Path
    ) -> None:
        plain, file = (
            save_lora(tuned, tmp_path / "plain"),
            save_lora(tuned, tmp_path / "odd", token_header("Odd one. ")),
        )
        assert (read_reward_token(file), read_reward_token(tmp_path / "odd")) == ("Odd one. ", "Odd one. ")
        assert read_reward_token(plain) is None
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata()["modelspec.trigger_phrase"] == "Odd one."
        models = [load_model(tiny_folder, CPU, lora=path) for path in (plain, file)]
        assert models[0].fingerprint == models[1].fingerprint == tuned.fingerprint
        with pytest.raises(ValueError, match="There is no LoRA at"):
            read_reward_token(tmp_path)

    def test_loading_gives_the_same_picture_bit_for_bit(
        self, tiny_folder: Path, tuned: TextToImage, tmp_path: Path
    ) -> None:
        file = save_lora(tuned, tmp_path)
        for path in (tmp_path, file):
            again = load_model(tiny_folder, CPU, lora=path)
            assert torch.equal(picture(again), picture(tuned))
            assert trained(again.denoiser).keys() == trained(tuned.denoiser).keys()

    def test_a_loaded_one_is_ejected_bit_for_bit(
        self, tiny_folder: Path, tiny_model: TextToImage, tuned: TextToImage, tmp_path: Path
    ) -> None:
        save_lora(tuned, tmp_path)
        model = load_model(tiny_folder, CPU, lora=tmp_path)
        eject(model.denoiser)
        assert torch.equal(picture(model), picture(tiny_model))

    def test_without_metadata_the_scale_is_one_as_in_diffusers(
        self, tiny_folder: Path, tuned: TextToImage, tmp_path: Path
    ) -> None:
        file = save_lora(tuned, tmp_path)
        save_file(load_file(file), file)
        model = load_model(tiny_folder, CPU, lora=tmp_path)
        with torch.no_grad():
            for name, parameter in trained(tuned.denoiser).items():
                parameter.mul_(RANK / ALPHA if "lora_B" in name else 1)
        torch.testing.assert_close(picture(model), picture(tuned), rtol=0, atol=1 / 255)

    def test_another_trainers_settings_survive_being_saved_again(
        self, tiny_folder: Path, tuned: TextToImage, tmp_path: Path
    ) -> None:
        file = save_lora(tuned, tmp_path)
        settings = {
            "unet.r": RANK,
            "unet.lora_alpha": ALPHA,
            "unet.target_modules": ["to_k", "to_out.0", "to_q", "to_v"],
        }
        header = {"lora_adapter_metadata": json.dumps(settings | {"unet.use_rslora": True})}
        save_file(load_file(file), file, header)
        theirs = load_model(tiny_folder, CPU, lora=file)
        assert lora_digest(theirs.denoiser) != lora_digest(tuned.denoiser)  # the same values at another scale
        again = load_model(tiny_folder, CPU, lora=save_lora(theirs, tmp_path / "again"))
        assert lora_digest(again.denoiser) == lora_digest(theirs.denoiser)

    def test_half_precision_models_load_and_save_float32(
        self, tiny_folder: Path, tuned: TextToImage, tmp_path: Path
    ) -> None:
        file = save_lora(tuned, tmp_path / "first")
        model = load_model(tiny_folder, CPU, torch.bfloat16, lora=file)
        before, after = load_file(file), load_file(save_lora(model, tmp_path / "second"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_a_second_one_is_refused(self, tuned: TextToImage, tmp_path: Path) -> None:
        save_lora(tuned, tmp_path)
        with pytest.raises(ValueError, match="has a LoRA already"):
            load_lora(tuned, tmp_path)

    def test_a_missing_one_says_what_to_give(self, fresh_model: TextToImage, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"no LoRA at {tmp_path / NAME}. Give a .safetensors file"):
            load_lora(fresh_model, tmp_path)

    DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
        "kohya's keys": (
            lambda tensors: tensors.update({"lora_unet_x.alpha": torch.ones(1)}),
            "not a LoRA of diffusers'",
        ),
        "a text encoder's": (
            lambda tensors: tensors.update({"text_encoder.x.lora.up.weight": torch.ones(1, 1)}),
            "unet alone",
        ),
        "nothing": (lambda tensors: tensors.clear(), "it is empty"),
        "another shape": (
            lambda tensors: tensors.update(
                {key: torch.ones(4, 99) for key in tensors if "attn2.to_k.lora.down" in key}
            ),
            "does not fit this model",
        ),
        "layers that are not here": (
            lambda tensors: tensors.update(
                {f"unet.deep.attn1.to_q.lora.{part}.weight": torch.ones(4, 4) for part in ("up", "down")}
            ),
            "64 of its 66 tensors have a place in it",
        ),
    }

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_another_models_or_formats_is_refused_and_leaves_the_model_clean(
        self, tiny_folder: Path, tiny_model: TextToImage, tuned: TextToImage, tmp_path: Path, damage: str
    ) -> None:
        file, (change, message) = save_lora(tuned, tmp_path), self.DAMAGES[damage]
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, header)
        model = load_model(tiny_folder, CPU)
        with pytest.raises(ValueError, match=message) as caught:
            load_lora(model, file)
        assert str(file) in str(caught.value)
        assert model.fingerprint == tiny_model.fingerprint
        assert torch.equal(picture(model), picture(tiny_model))

    def test_a_damaged_one_is_refused(self, tiny_model: TextToImage, tuned: TextToImage, tmp_path: Path) -> None:
        file = save_lora(tuned, tmp_path)
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(ValueError, match=f"The LoRA {file} cannot be read"):
            load_lora(tiny_model, file)
