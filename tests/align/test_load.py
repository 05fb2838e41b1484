"""Loading a model: which family, which files, and what is said when something is wrong with them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from align.families.load import load_model
from align.families.stable_diffusion import StableDiffusion
from align.lora import inject, save_lora
from align.model import TextToImage

CPU = torch.device("cpu")


def edit_json(**changes: Any) -> Callable[[Path], object]:
    """Change keys of a JSON file."""
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(file: Path) -> None:
    """Cut the end off, as a broken download does."""
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tensor(file: Path) -> None:
    """Leave out the first tensor of a weights file."""
    tensors = load_file(file)
    del tensors[min(tensors)]
    save_file(tensors, file, {"format": "pt"})


def pickle_instead(file: Path) -> None:
    """Offer the weights as a pickle only."""
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"

DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no index": ("model_index.json", Path.unlink, "has no model_index.json"),
    "torn index": (
        "model_index.json",
        lambda file: file.write_text("{"),
        "model_index.json is not valid JSON",
    ),
    "index of something else": (
        "model_index.json",
        lambda file: file.write_text("[]"),
        "the pipeline class None",
    ),
    "unknown class": (
        "model_index.json",
        edit_json(_class_name="StableDiffusionXLPipeline"),
        "'StableDiffusionXLPipeline', which align does not know. "
        "Known: StableDiffusionPipeline, StableDiffusionInpaintPipeline.",
    ),
    "unet not listed": (
        "model_index.json",
        lambda file: file.write_text('{"_class_name": "StableDiffusionPipeline", "vae": []}'),
        "does not list scheduler, text_encoder, tokenizer, unet",
    ),
    "truncated unet": (UNET, truncate, f"{UNET} is damaged"),
    "truncated text encoder": (TEXT, truncate, f"{TEXT} is damaged"),
    "no unet weights": (UNET, Path.unlink, "unet cannot be loaded"),
    "no vae weights": (VAE, Path.unlink, "vae cannot be loaded"),
    "no text encoder weights": (TEXT, Path.unlink, "text_encoder cannot be loaded"),
    "pickled unet": (UNET, pickle_instead, "pickled .bin files are not read"),
    "pickled text encoder": (TEXT, pickle_instead, "pickled .bin files are not read"),
    "unet lacks a tensor": (UNET, drop_tensor, "unet lack 1 tensors, such as conv_in.bias"),
    "vae lacks a tensor": (VAE, drop_tensor, "vae lack 1 tensors"),
    "text encoder lacks a tensor": (TEXT, drop_tensor, "text_encoder lack 1 tensors"),
    "torn unet configuration": (
        "unet/config.json",
        lambda file: file.write_text("{"),
        "unet/config.json is not valid JSON",
    ),
    "no unet configuration": ("unet/config.json", Path.unlink, "It must hold a config.json"),
    "no vae": ("vae", shutil.rmtree, "has no files for its vae"),
    "no vocabulary": ("tokenizer/tokenizer.json", Path.unlink, "its tokenizer has 2 tokens"),
    "no token limit": ("tokenizer/tokenizer_config.json", Path.unlink, "its text encoder takes 24"),
    "no scheduler": ("scheduler/scheduler_config.json", Path.unlink, "has no files for its scheduler"),
    "inpainting": ("vae/config.json", edit_json(latent_channels=3), "vae cannot be loaded"),
    "not square": ("unet/config.json", edit_json(sample_size=[8, 16]), "not square"),
    "predicts something else": (
        "scheduler/scheduler_config.json",
        edit_json(prediction_type="sample"),
        "predicts 'sample'",
    ),
}


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_the_index_picks_the_family(tiny_model: TextToImage) -> None:
    assert isinstance(tiny_model, StableDiffusion)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_error(copy: Path, damage: str) -> None:
    file, break_it, message = DAMAGES[damage]
    break_it(copy / file)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_model(copy, CPU)
    assert str(copy) in str(caught.value)


def test_a_safety_checker_is_never_loaded(copy: Path) -> None:
    edit_json(
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )(copy / "model_index.json")
    load_model(copy, CPU)  # the index promises files that are not there, so it would fail if it asked for them


def test_other_variants_of_the_weights_are_left_alone(copy: Path, tiny_model: TextToImage) -> None:
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not even a safetensors file")
    (copy / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"nor this")
    assert load_model(copy, CPU).fingerprint == tiny_model.fingerprint


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="model.safetensors is a file; .* Convert"):
        load_model(tmp_path / "model.safetensors", CPU)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "a name"])
def test_nothing_there_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"There is no model at {name}: .* Check the name"):
        load_model(name, CPU)


def test_a_repository_in_the_cache_is_loaded_offline(
    tiny_folder: Path, tiny_model: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, commit = tmp_path / "models--someone--tiny", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_model("someone/tiny", CPU).fingerprint == tiny_model.fingerprint


class TestFingerprint:
    def test_is_16_hexadecimal_digits(self, tiny_model: TextToImage) -> None:
        assert re.fullmatch("[0-9a-f]{16}", tiny_model.fingerprint)

    def test_a_copy_elsewhere_has_the_same(self, copy: Path, tiny_model: TextToImage) -> None:
        (copy / "README.md").write_text("A model.")
        assert load_model(copy, CPU).fingerprint == tiny_model.fingerprint

    def test_changes_with_the_precision(self, tiny_folder: Path, tiny_model: TextToImage) -> None:
        assert load_model(tiny_folder, CPU, torch.bfloat16).fingerprint != tiny_model.fingerprint

    def test_changes_with_a_weight(self, copy: Path, tiny_model: TextToImage) -> None:
        tensors = load_file(copy / UNET)
        tensors["conv_in.bias"][0] += 1
        save_file(tensors, copy / UNET, {"format": "pt"})
        assert load_model(copy, CPU).fingerprint != tiny_model.fingerprint

    def test_changes_with_the_scheduler(self, copy: Path, tiny_model: TextToImage) -> None:
        edit_json(beta_end=0.02)(copy / "scheduler" / "scheduler_config.json")
        assert load_model(copy, CPU).fingerprint != tiny_model.fingerprint

    def test_changes_with_a_lora_and_follows_it_through_a_file(
        self, tiny_folder: Path, fresh_model: TextToImage, tmp_path: Path
    ) -> None:
        base = fresh_model.fingerprint
        inject(fresh_model.denoiser, 2, 3, fresh_model.lora_target_modules, seed=0)
        injected = fresh_model.fingerprint
        next(parameter for parameter in fresh_model.denoiser.parameters() if parameter.requires_grad).data.add_(1)
        trained = fresh_model.fingerprint
        assert len({base, injected, trained}) == 3
        save_lora(fresh_model, tmp_path)
        assert load_model(tiny_folder, CPU, lora=tmp_path).fingerprint == trained
