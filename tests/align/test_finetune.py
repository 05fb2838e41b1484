"""LoRA fine-tuning: data encoded once, in an order that is a function of the step, learned, continued bit for bit."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from align import lora
from align.finetune import LoraTraining, encode, shuffled, train_lora
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
        return generate(fresh_model, PROMPTS, 2, tmp_path / "samples", 0, 6, Sampling(2, 2.0), log)


def test_every_image_comes_once_an_epoch() -> None:
    indices = shuffled(count=10, batch_size=4, seed=1)
    seen = torch.cat([indices(step) for step in range(5)])
    assert Counter(seen.tolist()) == dict.fromkeys(range(10), 2)
    assert sorted(seen[:10].tolist()) == list(range(10)) and not torch.equal(seen[:10], seen[10:])
    assert torch.equal(indices(3), shuffled(10, 4, 1)(3)) and not torch.equal(seen[:10], shuffled(10, 10, 2)(0))


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    assert Counter(shuffled(3, 8, 0)(0).tolist()).most_common()[0][1] == 3


def test_encoded_data_are_those_of_the_model(fresh_model: TextToImage, store: SampleStore, tmp_path: Path) -> None:
    rows = store.rows()
    with Log(tmp_path) as log:
        data = encode(fresh_model, store, rows, 4, log)
    torch.testing.assert_close(data.latents, fresh_model.encode_images(store.load(rows)))
    assert data.embeddings.shape[0] == 1 + len(PROMPTS)
    for row, index in zip(rows, data.prompt_of.tolist(), strict=True):
        torch.testing.assert_close(data.embeddings[index], fresh_model.encode_prompts([row.text])[0])


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "lora" / "pytorch_lora_weights.safetensors")


def train_in(folder: Path, model: TextToImage, store: SampleStore, settings: LoraTraining = TRAINING) -> None:
    with Log(folder) as log:
        train_lora(model, store, store.rows(), settings, folder, log, Accelerator(cpu=True))


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
