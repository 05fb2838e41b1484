"""A word whose vector is learned (textual inversion, arXiv 2208.01618): trained, and kept in diffusers' format."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from diffusers.loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from align.encoded import Picture, encode_pictures
from align.finetune import LoraTraining, check_min_timestep, denoising_loss, noisy_batches
from align.log import Log
from align.model import LearnedToken, TextToImage
from align.state import atomic_path, save_tensors
from align.train import train


def learn_token(
    model: TextToImage,
    token: str,
    start: str,
    pictures: Sequence[Picture],
    settings: LoraTraining,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
) -> None:
    """Teach `model` the word `token`, which begins as the words of `start`, by pictures whose prompts hold it.

    The objective is that of `train_lora`, over the word's vector alone: `model` changes in nothing else. Checkpoints
    are in `folder/checkpoints`, the vector comes into `folder/learned_embeds.safetensors`. Where that file is there, it
    is loaded, and that is all.

    Arguments:
        model: Without a LoRA. It knows the word afterwards; after an error, it does not.
        token: A word that the tokenizer does not know, like "<bad>".
        start: Words of about its meaning.
        pictures: What is to be seen where the word is in the prompt.
        settings: How; what is about a LoRA or ordinary images is not read.
        folder: For checkpoints, encoded images while they are needed, and the vector.
        log: Gets the curve.
        accelerator: The processes that share the work.

    Raises:
        ValueError: A prompt without the word, no pictures, a word that the tokenizer knows, a `min_timestep` without
            noise levels, or the file holds another word.
    """
    file = folder / TEXT_INVERSION_NAME_SAFE
    if file.exists():
        _load_same(model, token, file)
        return
    check_min_timestep(model, settings.min_timestep)
    _check_prompts(token, pictures)
    learned = model.add_token(token, start)
    try:
        _train(model, learned, pictures, settings, folder, log, accelerator)
    except BaseException:
        model.remove_token(token)
        raise
    if accelerator.is_main_process:
        shutil.rmtree(folder / "encoded")  # before the vector is there: a finished training does not look again
        save_token(token, learned.vector, file)
    accelerator.wait_for_everyone()


def save_token(token: str, vector: Tensor, file: Path) -> None:
    """Write a learned word atomically, as diffusers' `load_textual_inversion` reads it."""
    with atomic_path(file) as temporary:
        save_tensors({token: vector.detach().float().reshape(1, -1)}, temporary, {"format": "pt"})


def load_tokens(model: TextToImage, path: Path) -> str:
    """Teach `model` the word of a textual inversion's safetensors file (or of a folder with one), and return it.

    Raises:
        ValueError: The file is missing, damaged, holds more or less than one word of one vector, or does not fit.
    """
    file = path / TEXT_INVERSION_NAME_SAFE if path.is_dir() else path
    token, vector = _read(file)
    try:
        model.add_token(token, vector).requires_grad_(False)
    except ValueError as error:
        raise ValueError(f"{file} does not fit this model: {error}") from error
    return token


def _train(
    model: TextToImage,
    learned: LearnedToken,
    pictures: Sequence[Picture],
    settings: LoraTraining,
    folder: Path,
    log: Log,
    accelerator: Accelerator,
) -> None:
    data = encode_pictures(model, pictures, folder / "encoded", settings.train_batch_size, log, accelerator)
    batches = noisy_batches(model, data, None, settings)
    loss = denoising_loss(model, settings.snr_gamma, model.encode_prompts)
    train(learned, batches, loss, settings.loop, folder / "checkpoints", log, accelerator)
    learned.requires_grad_(False)


def _load_same(model: TextToImage, token: str, file: Path) -> None:
    """Load the word of an earlier call, which must have been about the same one."""
    if (found := _read(file)[0]) != token:
        raise ValueError(f"{file} holds the word {found!r}, where {token!r} belongs. Learn it in another folder.")
    load_tokens(model, file)


def _check_prompts(token: str, pictures: Sequence[Picture]) -> None:
    without = [picture for picture in pictures if token not in picture.text]
    if without or not pictures:
        what = f"{without[0].path} has {without[0].text!r}" if without else "there are no pictures"
        raise ValueError(f"Each picture to learn {token!r} from must have it in its prompt; {what}.")


def _read(file: Path) -> tuple[str, Tensor]:
    """The word in a file, and its vector."""
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no learned word at {file}. Give a .safetensors file of a textual inversion."
        ) from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The learned word {file} cannot be read ({error}). Save or copy it again.") from error
    vectors = {token: rows.reshape(-1, rows.shape[-1]) for token, rows in tensors.items() if rows.ndim}
    count = sum(len(rows) for rows in vectors.values())
    if count != 1 or len(tensors) != 1:
        raise ValueError(f"{file} holds {len(tensors)} words with {count} vectors; it must be one word of one vector.")
    token, rows = vectors.popitem()
    return token, rows[0]
