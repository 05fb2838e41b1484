"""LoRA fine-tuning: data encoded once, in an order that is a function of the step, learned, continued bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from align import lora
from align.encoded import read_imagefolder
from align.finetune import LoraTraining, shuffled, train_lora
from align.generate import generate
from align.log import Log, read_metrics
from align.model import Sampling, TextToImage
from align.samples import SampleStore
from align.train import TrainSettings

LOOP = TrainSettings(max_train_steps=60, learning_rate=2e-2, checkpointing_steps=20, seed=3)
TRAINING = LoraTraining(4, 4, None, train_batch_size=4, proportion_empty_prompts=0.25, min_timestep=0, loop=LOOP)
PROMPTS = ["a cat", "two dogs", "a red house"]


@pytest.fixture
def store(fresh_model: TextToImage, tmp_path: Path) -> SampleStore:
    with Log(tmp_path) as log:
        return generate(
            fresh_model, PROMPTS, 2, tmp_path / "samples", 0, 6, Sampling(2, 2.0), log, Accelerator(cpu=True)
        )


def test_every_image_comes_once_an_epoch() -> None:
    index = shuffled(count=10, seed=1)
    seen = [index(position) for position in range(20)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert [shuffled(10, 1)(position) for position in (13, 2)] == [seen[13], seen[2]]
    assert seen[:10] != [shuffled(10, 2)(position) for position in range(10)]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


def train_in(folder: Path, model: TextToImage, store: SampleStore, settings: LoraTraining = TRAINING) -> None:
    with Log(folder) as log:
        train_lora(model, store.rows(), [], settings, folder, log, Accelerator(cpu=True))


def test_training_learns_and_leaves_the_model_as_it_was(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in fresh_model.denoiser.state_dict().items()}
    train_in(tmp_path / "run", fresh_model, store)
    after = fresh_model.denoiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    error = denoising_error(fresh_model, store)
    lora.load_lora(fresh_model, tmp_path / "run" / "lora")
    assert denoising_error(fresh_model, store) < 0.95 * error
    assert len(read_metrics(tmp_path / "run")) == LOOP.max_train_steps
    assert not (tmp_path / "run" / "encoded").exists()


@torch.no_grad()
def denoising_error(model: TextToImage, store: SampleStore) -> float:
    """The mean squared error on the training images, at the same noise each time."""
    rows, generator = store.rows() * 20, torch.Generator().manual_seed(0)
    latents = model.encode_images(store.load(rows))
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(model.num_train_timesteps, (len(rows),), generator=generator)
    prediction = model.predict(model.add_noise(latents, noise, t), t, model.encode_prompts([row.text for row in rows]))
    return (prediction - model.target(latents, noise, t)).square().mean().item()


def test_noise_levels_are_drawn_from_min_timestep_on(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    add_noise = type(fresh_model).add_noise

    def watching(model: TextToImage, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return add_noise(model, latents, noise, t)

    monkeypatch.setattr(type(fresh_model), "add_noise", watching)
    train_in(tmp_path, fresh_model, store, replace(TRAINING, min_timestep=900))
    assert len(seen) == 4 * LOOP.max_train_steps and 900 <= min(seen) < 910 and max(seen) > 990


@pytest.mark.parametrize("min_timestep", [-1, 1000])
def test_a_min_timestep_without_noise_levels_is_refused(
    min_timestep: int, fresh_model: TextToImage, store: SampleStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"min_timestep is {min_timestep}; it must be from 0 to 999"):
        train_in(tmp_path, fresh_model, store, replace(TRAINING, min_timestep=min_timestep))


def test_a_stopped_training_ends_with_the_same_lora(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in(tmp_path / "whole", fresh_model, store)
    steps, add_noise = 0, type(fresh_model).add_noise

    def stopping(*arguments: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 33:
            raise InterruptedError
        return add_noise(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(fresh_model), "add_noise", stopping)
    with pytest.raises(InterruptedError):
        train_in(tmp_path / "stopped", fresh_model, store)
    lora.eject(fresh_model.denoiser)  # a new process starts without it
    train_in(tmp_path / "stopped", fresh_model, store)
    whole, stopped = tensors(tmp_path / "whole"), tensors(tmp_path / "stopped")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_trained_lora_is_not_trained_again(fresh_model: TextToImage, store: SampleStore, tmp_path: Path) -> None:
    short = replace(TRAINING, loop=replace(LOOP, max_train_steps=2))
    train_in(tmp_path / "run", fresh_model, store, short)
    before = (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").stat().st_mtime_ns
    train_in(tmp_path / "run", fresh_model, store, short)
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").stat().st_mtime_ns == before


def noisy_inputs(
    folder: Path, model: TextToImage, store: SampleStore, settings: LoraTraining, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """All noisy latents that the denoiser was shown, in their order."""
    seen: list[Tensor] = []
    predict = type(model).predict

    def watching(model: TextToImage, noisy: Tensor, *others: Tensor) -> Tensor:
        seen.append(noisy)
        return predict(model, noisy, *others)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "predict", watching)
        train_in(folder, model, store, settings)
    return torch.cat(seen)


def test_the_noisy_images_are_the_same_however_they_are_cut_into_batches(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = replace(LOOP, max_train_steps=6)
    parts = replace(TRAINING, train_batch_size=2, loop=replace(loop, gradient_accumulation_steps=2))
    whole = replace(TRAINING, loop=loop)
    one, two = (
        noisy_inputs(tmp_path / name, fresh_model, store, settings, monkeypatch)
        for name, settings in (("whole", whole), ("parts", parts))
    )
    assert torch.allclose(one, two, atol=1e-5) and len(one) == 24
    first, second = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.allclose(first[name], second[name], atol=2e-3) for name in first)


def test_noise_offset_shifts_whole_channels(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = replace(LOOP, max_train_steps=20)
    plain = replace(TRAINING, min_timestep=999, loop=loop)
    without, shifted = (
        noisy_inputs(tmp_path / name, fresh_model, store, settings, monkeypatch)
        for name, settings in (("plain", plain), ("offset", replace(plain, noise_offset=3.0)))
    )
    shift = (shifted - without).flatten(2)
    assert shift.std(2).max() < 1e-4 * shift.abs().max()  # the same for all pixels of a channel
    assert shift.mean(2).std() == pytest.approx(
        3.0 * fresh_model.snr(torch.tensor([999])).add(1).rsqrt().item(), rel=0.15
    )


def test_min_snr_changes_the_loss_as_its_weights_say(
    fresh_model: TextToImage, store: SampleStore, tmp_path: Path
) -> None:
    loop = replace(LOOP, max_train_steps=1)
    plain = replace(TRAINING, train_batch_size=1, min_timestep=999, loop=loop)
    for name, settings in (("plain", plain), ("weighted", replace(plain, snr_gamma=1e-3))):
        train_in(tmp_path / name, fresh_model, store, settings)
    without, weighted = (read_metrics(tmp_path / name)[0]["loss"] for name in ("plain", "weighted"))
    weight = 1e-3 / fresh_model.snr(torch.tensor([999])).item()
    assert weight < 0.5 and weighted == pytest.approx(weight * without, rel=1e-4)


@pytest.fixture
def ordinary(tmp_path: Path) -> Path:
    """An imagefolder of a user's own: grey pictures that are neither square nor of the model's size."""
    folder = tmp_path / "ordinary"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 30), (128, 128, 128)).save(folder / f"{index}.jpg")
    lines = [json.dumps({"file_name": f"{index}.jpg", "text": f"grey {index}"}) for index in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_share_of_the_images_is_ordinary(
    fresh_model: TextToImage, store: SampleStore, ordinary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = fresh_model.encode_images(torch.full((1, 3, 16, 16), 128 / 255))
    seen: list[Tensor] = []
    add_noise = type(fresh_model).add_noise

    def watching(model: TextToImage, latents: Tensor, *others: Tensor) -> Tensor:
        seen.extend(latents)
        return add_noise(model, latents, *others)

    monkeypatch.setattr(type(fresh_model), "add_noise", watching)
    settings = replace(TRAINING, regularization=0.3)
    with Log(tmp_path) as log:
        train_lora(
            fresh_model, store.rows(), read_imagefolder(ordinary), settings, tmp_path, log, Accelerator(cpu=True)
        )
    share = sum(torch.allclose(latents, grey[0], atol=0.02) for latents in seen) / len(seen)
    assert share == pytest.approx(0.3, abs=0.1) and len(seen) == 240


def test_a_share_of_nothing_is_refused(fresh_model: TextToImage, store: SampleStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A share of 0.3 ordinary images shall be mixed in, and none came"):
        train_in(tmp_path, fresh_model, store, replace(TRAINING, regularization=0.3))


def test_a_lora_is_gone_on_with(fresh_model: TextToImage, store: SampleStore, tmp_path: Path) -> None:
    train_in(tmp_path / "first", fresh_model, store)
    still = replace(TRAINING, loop=replace(LOOP, max_train_steps=1, learning_rate=1e-12))
    with Log(tmp_path / "second") as log:
        folder, start = tmp_path / "second", tmp_path / "first" / "lora"
        train_lora(fresh_model, store.rows(), [], still, folder, log, Accelerator(cpu=True), start_from=start)
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert all(torch.allclose(first[name], second[name], atol=1e-9) for name in first)
    moved = replace(TRAINING, loop=replace(LOOP, max_train_steps=3))
    with Log(tmp_path / "third") as log:
        folder = tmp_path / "third"
        train_lora(fresh_model, store.rows(), [], moved, folder, log, Accelerator(cpu=True), start_from=start)
    third = tensors(tmp_path / "third")
    assert not any(torch.allclose(first[name], third[name], atol=1e-4) for name in first)
