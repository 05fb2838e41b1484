"""A learned word: learned alone, continued bit for bit, and read by a bare diffusers pipeline."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.encoded import CaptionedFile, read_image
from align.families.load import load_model
from align.finetune import LoraTraining
from align.generate import generate
from align.learned_token import learn_token, load_tokens, save_token
from align.log import Log, read_metrics
from align.lora import LEARNED_TOKEN, inject, save_lora
from align.model import Sampling, TextToImage
from align.train import TrainSettings
from tests.align.test_vocabulary import CPU, OTHERS, TOKEN, same, weights

LOOP = TrainSettings(max_train_steps=60, learning_rate=0.3, checkpointing_steps=20, seed=3)
TRAINING = LoraTraining(4, 4, None, train_batch_size=4, proportion_empty_prompts=0.25, min_timestep=0, loop=LOOP)
SHORT = replace(TRAINING, loop=replace(LOOP, max_train_steps=4))
NAME = "learned_embeds.safetensors"


@pytest.fixture
def pictures(tiny_model: TextToImage, tmp_path: Path) -> list[CaptionedFile]:
    with Log(tmp_path) as log:
        prompts, sampling = ["a cat", "two dogs", "a red house"], Sampling(2, 2.0)
        store = generate(tiny_model, prompts, 2, tmp_path / "samples", 0, 6, sampling, log, Accelerator(cpu=True))
    return [CaptionedFile(row.path, f"{TOKEN} {row.text}") for row in store.rows()]


def learn_in(
    folder: Path, model: TextToImage, pictures: list[CaptionedFile], settings: LoraTraining = TRAINING
) -> None:
    with Log(folder) as log:
        learn_token(model, TOKEN, "ugly", pictures, settings, folder, log, Accelerator(cpu=True))


@torch.no_grad()
def denoising_error(model: TextToImage, pictures: list[CaptionedFile]) -> float:
    """The mean squared error on the pictures, at the same noise each time."""
    rows, generator = pictures * 20, torch.Generator().manual_seed(0)
    latents = model.encode_images(torch.stack([read_image(picture.path, model.resolution) for picture in rows]))
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(model.num_train_timesteps, (len(rows),), generator=generator)
    words = model.encode_prompts([picture.text for picture in rows])
    prediction = model.predict(model.add_noise(latents, noise, t), t, words)
    return (prediction - model.target(latents, noise, t)).square().mean().item()


def test_learning_lowers_the_error_and_moves_nothing_else(
    fresh_model: TextToImage, tiny_model: TextToImage, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    before, prints = weights(fresh_model), fresh_model.fingerprint
    start = fresh_model.add_token(TOKEN, "ugly").vector.detach()
    error = denoising_error(fresh_model, pictures)
    fresh_model.remove_token(TOKEN)
    learn_in(tmp_path / "run", fresh_model, pictures)
    assert denoising_error(fresh_model, pictures) < 0.99 * error
    assert (load_file(tmp_path / "run" / NAME)[TOKEN][0] - start).norm() > 1
    assert len(read_metrics(tmp_path / "run")) == LOOP.max_train_steps
    assert not (tmp_path / "run" / "encoded").exists()
    ours = fresh_model.encode_prompts(OTHERS)
    assert torch.equal(ours, tiny_model.encode_prompts(OTHERS)) and not ours.requires_grad
    assert fresh_model.fingerprint != prints
    fresh_model.remove_token(TOKEN)
    assert same(weights(fresh_model), before) and fresh_model.fingerprint == prints


def stop_at(number: int, model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the step of that number, once."""
    calls, add_noise = 0, type(model).add_noise

    def stopping(*arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            raise InterruptedError
        return add_noise(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(model), "add_noise", stopping)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_stopped_learning_ends_with_the_same_vector(
    fresh_model: TextToImage,
    tiny_folder: Path,
    pictures: list[CaptionedFile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ema_decay: float,
) -> None:
    settings, prints = replace(TRAINING, loop=replace(LOOP, ema_decay=ema_decay)), fresh_model.fingerprint
    learn_in(tmp_path / "whole", load_model(tiny_folder, CPU), pictures, settings)
    stop_at(33, fresh_model, monkeypatch)
    with pytest.raises(InterruptedError):
        learn_in(tmp_path / "stopped", fresh_model, pictures, settings)
    assert fresh_model.fingerprint == prints  # the word is not left there half learned
    learn_in(tmp_path / "stopped", fresh_model, pictures, settings)
    assert (tmp_path / "stopped" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()


def test_a_learned_word_is_loaded_and_not_learned_again(
    fresh_model: TextToImage, tiny_folder: Path, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    learn_in(tmp_path, fresh_model, pictures, replace(TRAINING, loop=replace(LOOP, max_train_steps=2)))
    steps, content = len(read_metrics(tmp_path)), (tmp_path / NAME).read_bytes()
    again = load_model(tiny_folder, CPU)
    learn_in(tmp_path, again, pictures)
    assert again.fingerprint == fresh_model.fingerprint
    assert (len(read_metrics(tmp_path)), (tmp_path / NAME).read_bytes()) == (steps, content)
    with Log(tmp_path) as log, pytest.raises(ValueError, match="holds the word '<bad>', where '<worse>' belongs"):
        learn_token(load_model(tiny_folder, CPU), "<worse>", "ugly", [], TRAINING, tmp_path, log, Accelerator(cpu=True))


@pytest.mark.parametrize("number", [0, 3])
def test_a_prompt_without_the_word_is_refused(
    number: int, tiny_model: TextToImage, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    some = [replace(picture, text="a cat") if row == 2 else picture for row, picture in enumerate(pictures[:number])]
    message = "has 'a cat'" if number else "there are no pictures"
    with pytest.raises(ValueError, match=f"'<bad>' from must have it in its prompt; .*{message}"):
        learn_in(tmp_path / "run", tiny_model, some)


def test_a_min_timestep_without_noise_levels_is_refused(
    tiny_model: TextToImage, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="min_timestep is 1000; it must be from 0 to 999"):
        learn_in(tmp_path / "run", tiny_model, pictures, replace(TRAINING, min_timestep=1000))


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from accelerate import Accelerator
from align.encoded import read_imagefolder
from align.families.load import load_model
from align.learned_token import learn_token
from align.log import Log
from tests.align.test_learned_token import CPU, SHORT, TOKEN
if __name__ == "__main__":
    folder, model, pictures = Path(sys.argv[1]), load_model(sys.argv[2], CPU), Path(sys.argv[3])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    settings = replace(SHORT, train_batch_size=SHORT.train_batch_size // 2)
    with Log(folder, is_main=accelerator.is_main_process) as log:
        learn_token(model, TOKEN, "ugly", read_imagefolder(pictures), settings, folder, log, accelerator)
    (folder / f"{accelerator.process_index}.txt").write_text(model.fingerprint)
"""


def learn_by_two(tiny_folder: Path, images: Path, folder: Path) -> list[str]:
    """The fingerprint of the model of each of the two processes that shared the learning."""
    (script := folder / "learn.py").write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"ALIGN_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": root}
    command = [sys.executable, *launch, str(folder / "two"), str(tiny_folder), str(images)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [(folder / "two" / f"{process}.txt").read_text() for process in range(2)]


def test_two_processes_learn_what_one_does(
    fresh_model: TextToImage, tiny_folder: Path, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    (images := tmp_path / "images").mkdir()
    rows: list[str] = []
    for number, picture in enumerate(pictures):
        (images / f"{number}.png").write_bytes(picture.path.read_bytes())
        rows.append(json.dumps({"file_name": f"{number}.png", "text": picture.text}))
    (images / "metadata.jsonl").write_text("\n".join(rows))
    learn_in(tmp_path / "one", fresh_model, pictures, SHORT)
    prints = learn_by_two(tiny_folder, images, tmp_path)
    assert prints[0] == prints[1]
    one, two = (load_file(tmp_path / name / NAME)[TOKEN] for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=2e-3)


def test_a_bare_pipeline_with_the_word_as_negative_prompt_draws_the_same(
    fresh_model: TextToImage, tiny_folder: Path, pictures: list[CaptionedFile], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    learn_in(folder, fresh_model, pictures)
    inject(fresh_model.denoiser, 4, 8, fresh_model.lora_target_modules, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in fresh_model.denoiser.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    lora = save_lora(fresh_model, folder, {LEARNED_TOKEN: TOKEN})
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(folder / NAME)
    pipeline.load_lora_weights(folder)
    loaded = [load_model(tiny_folder, CPU, lora=path) for path in (folder, lora)]
    assert {model.fingerprint for model in loaded} == {fresh_model.fingerprint}
    images: list[Tensor] = []
    for words in (TOKEN, ""):
        seed, sampling = torch.Generator().manual_seed(1), Sampling(6, 5.0, words)
        drawn = pipeline("a cow", negative_prompt=words, num_inference_steps=6, guidance_scale=5.0, generator=seed,
                         output_type="np").images  # fmt: skip
        theirs = torch.from_numpy(drawn).permute(0, 3, 1, 2)
        images.append(loaded[0].sample(["a cow"], [1], sampling))
        torch.testing.assert_close(images[-1], theirs, rtol=0, atol=1 / 255)
    assert (images[0] - images[1]).abs().max() > 10 / 255


def test_a_lora_comes_with_the_word_that_was_learned_for_it_and_with_no_other(
    fresh_model: TextToImage, tiny_folder: Path, tmp_path: Path
) -> None:
    inject(fresh_model.denoiser, 4, 8, fresh_model.lora_target_modules, seed=0)
    save_token("<other>", torch.linspace(-1, 1, 16), tmp_path / NAME)
    save_lora(fresh_model, tmp_path)
    assert load_model(tiny_folder, CPU, lora=tmp_path).fingerprint == fresh_model.fingerprint
    file = save_lora(fresh_model, tmp_path, {LEARNED_TOKEN: TOKEN})
    with pytest.raises(ValueError, match=f"trained with the learned word '{TOKEN}', and .* holds '<other>'"):
        load_model(tiny_folder, CPU, lora=tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(ValueError, match=f"the learned word '{TOKEN}', whose embedding must lie beside it"):
        load_model(tiny_folder, CPU, lora=file)


def test_a_half_precision_model_loads_and_draws_in_its_precision(tiny_folder: Path, tmp_path: Path) -> None:
    save_token(TOKEN, torch.linspace(-1, 1, 16), tmp_path / NAME)
    model = load_model(tiny_folder, CPU, torch.bfloat16)
    assert load_tokens(model, tmp_path) == TOKEN
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_folder).to(torch.bfloat16)
    pipeline.load_textual_inversion(tmp_path)
    theirs = pipeline.encode_prompt(f"a {TOKEN}", CPU, 1, do_classifier_free_guidance=False)[0]
    assert torch.equal(model.encode_prompts([f"a {TOKEN}"]), theirs)


@pytest.mark.parametrize("shape", [(16,), (1, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_trainers_files_are_read(
    shape: tuple[int, ...], dtype: torch.dtype, fresh_model: TextToImage, tmp_path: Path
) -> None:
    vector = torch.linspace(-1, 1, 16).to(dtype)
    save_file({TOKEN: vector.reshape(shape)}, tmp_path / "other.safetensors")
    assert load_tokens(fresh_model, tmp_path / "other.safetensors") == TOKEN
    save_token("<again>", vector, tmp_path / NAME)
    load_tokens(fresh_model, tmp_path)
    ours, again = fresh_model.encode_prompts([TOKEN, "<again>"])
    assert torch.equal(ours, again) and not ours.requires_grad


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: file.unlink(), r"There is no learned word at .*learned_embeds\.safetensors"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-8]), "cannot be read"),
    "several vectors": (lambda file: save_file({TOKEN: torch.ones(3, 16)}, file), "holds 1 words with 3 vectors"),
    "several words": (
        lambda file: save_file({TOKEN: torch.ones(16), "<b>": torch.ones(16)}, file),
        "holds 2 words with 2 vectors; it must be one word of one vector",
    ),
    "no vector": (lambda file: save_file({TOKEN: torch.ones(())}, file), "holds 1 words with 0 vectors"),
    "nothing": (lambda file: save_file({}, file), "holds 0 words with 0 vectors"),
    "another width": (
        lambda file: save_file({TOKEN: torch.ones(768)}, file),
        "does not fit this model: The vector of '<bad>' has 768 numbers",
    ),
    "a known word": (lambda file: save_file({"x": torch.ones(16)}, file), "does not fit this model: 'x' is a word"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_single_word_is_refused(damage: str, fresh_model: TextToImage, tmp_path: Path) -> None:
    save_token(TOKEN, torch.ones(16), tmp_path / NAME)
    (change, message), prints = DAMAGES[damage], fresh_model.fingerprint
    change(tmp_path / NAME)
    with pytest.raises(ValueError, match=message):
        load_tokens(fresh_model, tmp_path / NAME)
    assert fresh_model.fingerprint == prints
