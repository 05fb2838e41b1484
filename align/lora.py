"""LoRA (arXiv 2106.09685) in any module: inject, eject bit for bit, save in diffusers' format, load.

A LoRA is kept in float32 even where the frozen weights are in half precision: its updates would be lost to rounding.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from align.model import TextToImage, weighted_texts
from align.state import atomic_path, save_tensors

ADAPTER = "default"

REWARD_TOKEN = "align.reward_token"
"""In the header of a LoRA's file: the words that mark images people do not like, for the negative prompt.

One string stands there as it is; several, or one that begins with a brace, as JSON, {words: weight}."""

LEARNED_TOKEN = "align.learned_token"
"""In the header of a LoRA's file: a word whose embedding was learned for it, and lies beside it."""

PROMPT_PREFIX = "align.prompt_prefix"
"""In the header of a LoRA's file: the words that ask for images people like, before the prompt."""


def inject(module: nn.Module, rank: int, lora_alpha: int, target_modules: Sequence[str], seed: int) -> None:
    """Put a trainable LoRA of scale `lora_alpha / rank` beside each targeted layer of `module`, and freeze all else.

    It starts as zero (A is normal with standard deviation 1 / rank, B is zero), so the module's output does not change.
    The values follow from `seed` alone, and the global random state stays as it was.

    Raises:
        ValueError: There is a LoRA already, `rank` is below 1, or a name in `target_modules` ends no layer's name.
    """
    if _lora_layers(module):
        raise ValueError("This module has a LoRA already; it can hold one. Eject it first, or go on training it.")
    if rank < 1:
        raise ValueError(f"rank is {rank}; a LoRA needs a rank of at least 1. 4 to 64 is usual.")
    check_targets(module, target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=lora_alpha,
        target_modules=sorted(target_modules),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs; peft draws on the CPU.
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, module, ADAPTER)
    _finish(module)


def eject(module: nn.Module) -> None:
    """Take the LoRA out of `module`, the inverse of `inject`: weights and outputs are bit for bit what they were."""
    layers = _lora_layers(module)
    assert layers, "there is no LoRA to eject"
    for name, layer in layers.items():
        module.set_submodule(name, layer.get_base_layer())
    del module.peft_config
    if isinstance(module, PeftAdapterMixin):
        module._hf_peft_config_loaded = False  # pyright: ignore[reportPrivateUsage]


@contextmanager
def merged(module: nn.Module) -> Generator[None, None, None]:
    """While this lasts, the LoRA is in the weights beside it, so that sampling costs what it does without one.

    Afterwards all weights are bit for bit what they were. Those in half precision stay as they are: what a LoRA adds
    would be lost to their rounding.
    """
    found: list[Any] = [*_lora_layers(module).values()]
    layers = [layer for layer in found if layer.get_base_layer().weight.dtype == torch.float32]
    before: list[Tensor] = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.merged_adapters.clear()  # not peft's unmerge: what is taken off again is not what it was to the bit
            layer.get_base_layer().weight.data.copy_(weight)


def token_header(reward_token: str | Mapping[str, float]) -> dict[str, str]:
    """What to add to a LoRA's header so that readers know its words: ours, and the trigger phrase of modelspec.

    Arguments:
        reward_token: The words, or several with the weights that they have as negative prompts.

    Raises:
        ValueError: A mapping of none, or of weights that are not finite and above 0.
    """
    token = weighted_texts(reward_token)
    weights = {token: 1.0} if isinstance(token, str) else token
    written = token if isinstance(token, str) and not token.startswith("{") else json.dumps(weights)
    return {REWARD_TOKEN: written, "modelspec.trigger_phrase": ", ".join(text.strip() for text in weights)}


def read_reward_token(path: Path) -> str | dict[str, float] | None:
    """The words that a LoRA's file (or a folder with one) asks to have as negative prompt; None where it has none.

    Several come with their weights, as `token_header` was given them.

    Raises:
        ValueError: The file is missing or damaged, or what it says of the words is.
    """
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    written = _open(file)[1].get(REWARD_TOKEN)
    if written is None or not written.startswith("{"):
        return written
    try:
        weights = json.loads(written, parse_int=float)
        if not all(type(weight) is float for weight in weights.values()):
            raise ValueError("a weight is not a number")
        return weighted_texts(weights)
    except ValueError as error:
        raise ValueError(
            f"The reward tokens in the header of the LoRA {file} are damaged ({error}): {written!r}; {REWARD_TOKEN} "
            "must hold words, or JSON of words and weights above 0. Save or copy the LoRA again."
        ) from error


def read_header(path: Path, key: str) -> str:
    """What the header of a LoRA's file (or of a folder with one) says under a key, such as `PROMPT_PREFIX`; else "".

    Raises:
        ValueError: The file is missing or damaged.
    """
    return _open(path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path)[1].get(key, "")


def save_lora(model: TextToImage, folder: Path, header: Mapping[str, str] | None = None) -> Path:
    """Write the LoRA of `model` to `folder/pytorch_lora_weights.safetensors`, atomically, and return that path.

    The file is what diffusers' `load_lora_weights` reads, its alpha included. `header` is added to its own.
    """
    configs: Any = model.denoiser.peft_config
    metadata = {f"{model.denoiser_name}.{key}": value for key, value in _settings(configs[ADAPTER]).items()}
    tensors = _diffusers_names(get_peft_model_state_dict(model.denoiser, adapter_name=ADAPTER))
    path = folder / LORA_WEIGHT_NAME_SAFE
    with atomic_path(path) as temporary:
        save_tensors(
            {f"{model.denoiser_name}.{name}": tensor for name, tensor in tensors.items()},
            temporary,
            {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, sort_keys=True), **(header or {})},
        )
    return path


def _diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Peft's names as diffusers' own. Its converter renames attention projections only, and its loader reads a file in
    one convention: of a file with both, it leaves out one half with a warning."""
    names = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    return {name.replace(part, names[part]): value for name, value in tensors.items() for part in names if part in name}


def load_lora(model: TextToImage, path: Path) -> None:
    """Put the LoRA of a safetensors file in diffusers' format (or of a folder with one) into the denoiser of `model`.

    A file without adapter metadata has the scale 1, as in diffusers. The LoRA can be trained further.

    Raises:
        ValueError: The file is missing, damaged, in another format or made for another model, or `model` has a LoRA.
    """
    if _lora_layers(model.denoiser):
        raise ValueError(f"The model has a LoRA already; it can hold one. Eject it before loading {path}.")
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    tensors, metadata = _read(file, model.denoiser_name)
    assert isinstance(model.denoiser, PeftAdapterMixin)
    try:
        model.denoiser.load_lora_adapter(
            tensors,
            prefix=None,  # pyright: ignore[reportArgumentType]  # its own default says str, its documentation None
            metadata=metadata,
            adapter_name=ADAPTER,
        )
        _check_placed(model.denoiser, len(tensors))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        if _lora_layers(model.denoiser):
            eject(model.denoiser)
        raise ValueError(f"{file} does not fit this model: {error}. Use a LoRA that was trained on it.") from error
    _finish(model.denoiser)
    # Once more, as peft has rounded them to the precision of the frozen weights.
    set_peft_model_state_dict(model.denoiser, tensors, ADAPTER)


def lora_digest(module: nn.Module) -> bytes:
    """A hash of the values and scales of the LoRA in `module` as they are now; empty where there is none."""
    layers = _lora_layers(module)
    digest = hashlib.blake2b(digest_size=8)
    for name, layer in sorted(layers.items()):
        parts: Any = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        digest.update(f"{name} {layer.scaling[ADAPTER]}".encode())
        digest.update(b"".join(part.weight.detach().cpu().numpy().tobytes() for part in parts))
    return digest.digest() if layers else b""


def _settings(config: LoraConfig) -> dict[str, Any]:
    """Rank, alpha and all else that is not peft's default: a reader's LoraConfig refuses the keys of a newer peft."""
    defaults = LoraConfig().to_dict() | {"r": None, "lora_alpha": None}
    changed = {key: value for key, value in config.to_dict().items() if value != defaults.get(key)}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in changed.items()}


def _lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _finish(module: nn.Module) -> None:
    """What `inject` and `load_lora` share: float32 values, and a diffusers model that knows that it has an adapter."""
    cast_training_params(module, dtype=torch.float32)
    if isinstance(module, PeftAdapterMixin):
        module._hf_peft_config_loaded = True  # pyright: ignore[reportPrivateUsage]


def check_targets(module: nn.Module, target_modules: Sequence[str]) -> None:
    """Raise a ValueError unless each name is that of a layer, or the last part of one."""
    names = [name for name, _ in module.named_modules()]
    unmatched = [target for target in target_modules if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unmatched or not target_modules:
        raise ValueError(
            f"No layer of {type(module).__name__} is called {' or '.join(unmatched) or '(nothing was named)'}; "
            f"a LoRA needs the names of layers, or their last parts. Here there are {', '.join(_linear_names(module))}."
        )


def _linear_names(module: nn.Module) -> list[str]:
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _read(file: Path, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a LoRA file by peft's names, and the settings of its LoRA where they are there."""
    tensors, _, metadata = _open(file)
    _check_keys(file, tensors, prefix)
    settings = {name.removeprefix(f"{prefix}."): value for name, value in metadata.items()}
    return {_peft_name(name, prefix): tensor for name, tensor in tensors.items()}, settings or None


def _open(file: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """All that is in a LoRA file: its tensors, its header, and of that the settings of its LoRA."""
    try:
        with safe_open(file, framework="pt") as handle:
            tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            header: dict[str, str] = handle.metadata() or {}
        return tensors, header, json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no LoRA at {file}. Give a .safetensors file, or a folder that holds {LORA_WEIGHT_NAME_SAFE}."
        ) from error
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The LoRA {file} cannot be read ({error}); it must be a complete safetensors file. Save or copy it again."
        ) from error


def _peft_name(name: str, prefix: str) -> str:
    return name.removeprefix(f"{prefix}.").replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _check_placed(module: nn.Module, tensors: int) -> None:
    """Two tensors make a layer; what diffusers found no layer for, it leaves out with a warning."""
    placed = 2 * len(_lora_layers(module))
    if placed != tensors:
        raise ValueError(f"{placed} of its {tensors} tensors have a place in it")


def _check_keys(file: Path, tensors: Mapping[str, Tensor], prefix: str) -> None:
    foreign = [name for name in tensors if not (name.startswith(f"{prefix}.") and ".lora" in name)]
    if foreign or not tensors:
        raise ValueError(
            f"{file} is not a LoRA of diffusers' for the {prefix} alone: {foreign[0] if foreign else 'it is empty'}. "
            f"All its keys must look like {prefix}.LAYER.lora.down.weight. Convert it, or train one with align."
        )
