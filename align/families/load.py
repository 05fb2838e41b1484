"""From a folder or a Hugging Face repository to a TextToImage: reads model_index.json and picks the family."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from align.families.stable_diffusion import StableDiffusion
from align.learned_token import load_tokens
from align.lora import LEARNED_TOKEN, load_lora, read_header
from align.model import TextToImage
from align.state import read_json

FAMILIES: Mapping[str, type[StableDiffusion]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionInpaintPipeline": StableDiffusion,
}
"""From the `_class_name` of a model_index.json to the family that serves it."""

_ENDINGS = ("json", "txt", "safetensors")
_VARIANTS = ["*.fp16.*", "*.non_ema.*"]
"""Second copies of the same weights, which some repositories hold beside the ones that are read."""


def load_model(
    path_or_repo: str | Path, device: torch.device, dtype: torch.dtype = torch.float32, lora: Path | None = None
) -> TextToImage:
    """Load a pipeline folder of diffusers, or a Hugging Face repository of one, ready to sample.

    Weights are read from safetensors only: nothing is unpickled and no code of the repository is run. With a
    LoRA that a word was learned for comes this word, from the `learned_embeds.safetensors` beside it.

    Raises:
        ValueError: Nothing there, no model_index.json, an unknown class, or a missing or damaged file.
    """
    folder = _resolve(path_or_repo)
    family = _family(folder)
    files = [file for component in family.components for file in _component_files(folder, component)]
    model = family(folder, device, dtype, _identity(folder, files, dtype))
    if lora is not None:
        load_lora(model, lora)
        _load_word_of(model, lora)
    return model


def _load_word_of(model: TextToImage, lora: Path) -> None:
    """The word that was learned for a LoRA, if one was: without it the LoRA would be asked for letters."""
    token, beside = (
        read_header(lora, LEARNED_TOKEN),
        (lora if lora.is_dir() else lora.parent) / TEXT_INVERSION_NAME_SAFE,
    )
    if token and not beside.exists():
        raise ValueError(
            f"{lora} was trained with the learned word {token!r}, whose embedding must lie beside it, at {beside}. "
            "Copy it there from where the LoRA was."
        )
    if token and (found := load_tokens(model, beside)) != token:
        raise ValueError(f"{lora} was trained with the learned word {token!r}, and {beside} holds {found!r}.")


def _resolve(path_or_repo: str | Path) -> Path:
    """The folder itself, or that of the repository's snapshot in the cache."""
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{path} is a file; a model is a diffusers folder with a model_index.json. "
            "Convert a single-file checkpoint first."
        )
    try:
        return Path(snapshot_download(str(path_or_repo), allow_patterns=_patterns(), ignore_patterns=_VARIANTS))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"There is no model at {path_or_repo}: it is no folder here, and no Hugging Face repository that could be "
            f"had ({reason}). Check the name, the network or HF_HUB_OFFLINE, and your access to it."
        ) from error


def _patterns() -> list[str]:
    components = {component for family in FAMILIES.values() for component in family.components}
    return ["model_index.json", *(f"{name}/*.{end}" for name in sorted(components) for end in _ENDINGS)]


def _family(folder: Path) -> type[StableDiffusion]:
    file = folder / "model_index.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline. Give the folder that holds one."
        )
    index: Any = read_json(file)
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, 1)
        raise ValueError(
            f"{file} names the pipeline class {name!r}, which align does not know. Known: {', '.join(FAMILIES)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    family = FAMILIES[str(name)]
    missing = [component for component in family.components if component not in index]
    if missing:
        raise ValueError(
            f"{file} does not list {', '.join(missing)}, which a {name} needs. Restore the file from its source."
        )
    return family


def _component_files(folder: Path, component: str) -> list[Path]:
    """The files of a component that decide its results, checked: configuration, tokenizer and weights."""
    files = [file for end in _ENDINGS for file in sorted((folder / component).glob(f"*.{end}"))]
    files = [file for file in files if not any(file.match(variant) for variant in _VARIANTS)]
    if not files:
        raise ValueError(f"{folder} has no files for its {component}. Restore {folder / component} from their source.")
    for file in files:
        if file.suffix == ".json":
            read_json(file)
        if file.suffix == ".safetensors":
            _check_safetensors(file)
    return files


def _check_safetensors(file: Path) -> None:
    """Refuse a truncated or foreign file: the header must parse, and the length must be the one it announces."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error}). Copy or download it again.") from error


def _identity(folder: Path, files: Iterable[Path], dtype: torch.dtype) -> str:
    """A hash of the files' names and contents and of the precision; a copy of the folder elsewhere has the same."""
    digest = hashlib.blake2b(str(dtype).encode(), digest_size=8)
    for file in files:
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=32))
        digest.update(file.relative_to(folder).as_posix().encode() + content.digest())
    return digest.hexdigest()
