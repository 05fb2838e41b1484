"""From the authors' checkpoints to the folders that `rewards` reads: other names, safetensors, a configuration.

Each function takes the tensors of a checkpoint (`read_checkpoint`), the network's configuration in
open_clip's terms (`VIT_L_14`, `VIT_H_14`) and the folder to write:

    convert_clip       HPS v1 (`hpc.pt`), HPS v2 and v2.1 (`HPS_v2_compressed.pt`, `HPS_v2.1_compressed.pt`),
                       PickScore (`model.safetensors` of yuvalkirstain/PickScore_v1)
    convert_mps        MPS (the state dict of `MPS_overall_checkpoint.pth`)
    convert_aesthetic  OpenAI's CLIP ViT-L/14 and LAION's `sac+logos+ava1-l14-linearMSE.pth`

Nothing is left over in silence: a tensor that is missing, unknown or of another shape is an error.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any

import torch
from open_clip import CLIP
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.aesthetic import HEAD, make_head
from rewards.clip import CONFIG, WEIGHTS
from rewards.mps import FUSION, FUSION_CONFIG
from rewards.mps_fusion import Fusion

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]

VIT_L_14: Config = MappingProxyType(
    {
        "embed_dim": 768,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": {"width": 768, "heads": 12, "layers": 12, "tokenizer_mode": "openai"},
    }
)
"""OpenAI's, of HPS v1 and the aesthetic predictor."""
VIT_H_14: Config = MappingProxyType(
    {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"width": 1024, "heads": 16, "layers": 24},
    }
)
"""LAION's, of HPS v2, PickScore and MPS."""
MPS_FUSION: Config = MappingProxyType({"layers": 4, "heads": 16})

POSITIONS = r".*\.position_ids"
"""The numbers from 0 on, which old versions of transformers saved."""
SIZES = r"input_resolution|context_length|vocab_size"
"""What OpenAI's own files say beside the tensors."""
HUGGING_FACE_NAMES = (
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.attn\.in_proj_", ".self_attn.{qkv}_proj."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.conv1\.", ".embeddings.patch_embedding."),
    (r"\.ln_pre\.", ".pre_layrnorm."),  # sic
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
)
"""From open_clip's names to those of transformers, below a tower."""


@dataclass(frozen=True)
class Source:
    """Where a tensor of ours comes from.

    Attributes:
        keys: Of the checkpoint; several are stacked along the first dimension.
        transposed: Whether the checkpoint has the matrix the other way round.
    """

    keys: tuple[str, ...]
    transposed: bool = False


Layout = Callable[[str], Source]
"""From the name of a tensor of ours to its source."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pt` / `.pth` file, of which no code is run.

    A dictionary with the entry `state_dict` is unwrapped; entries that are no tensors are left out.

    Raises:
        ValueError: No such file, a damaged one, a pickled module or a TorchScript archive, whose code would have to be
            run; or no dictionary.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Give the checkpoint that the authors publish.")
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and would have to run its code ({error}). Where you trust "
            "it, load it by itself, apart from your work, and save its `state_dict()`."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; give a file with a dictionary of tensors.")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def convert_clip(tensors: Tensors, model: Config, folder: Path) -> None:
    """A CLIP with the names of OpenAI's and open_clip's code, or of transformers."""
    _write(folder, {WEIGHTS: _clip(tensors, model)}, model_cfg=model)


def convert_mps(tensors: Tensors, model: Config, folder: Path, fusion: Config = MPS_FUSION) -> None:
    """The state dict of MPS: a CLIP of transformers under `model.`, the fusion under `cross_model.`."""
    clip = {key: value for key, value in tensors.items() if not key.startswith("cross_model.")}
    cross = {key: value for key, value in tensors.items() if key.startswith("cross_model.")}
    for key in [key for key in cross if key.endswith(".norm.bias")]:
        if cross[key].any():
            raise ValueError(f"{key} must be zero, as in the authors' code, which has no such parameter.")
    weights = gather(clip, _clip_shapes(model), _below("model.", _hugging_face), POSITIONS)
    with torch.device("meta"):
        shapes = _shapes(Fusion(model["embed_dim"], **fusion))
    fused = gather(cross, shapes, _fusion, unused=r".*\.norm\.bias")
    _write(folder, {WEIGHTS: weights, FUSION: fused}, model_cfg=model, **{FUSION_CONFIG: fusion})


def convert_aesthetic(clip: Tensors, head: Tensors, model: Config, folder: Path) -> None:
    """OpenAI's CLIP, with either's names, and the head of linear layers upon it."""
    with torch.device("meta"):
        shapes = _shapes(make_head(model["embed_dim"]))
    rated = gather(head, shapes, _head)
    _write(folder, {WEIGHTS: _clip(clip, model), HEAD: rated}, model_cfg=model)


def gather(
    tensors: Tensors, shapes: Mapping[str, torch.Size], layout: Layout, unused: str | None = None
) -> dict[str, Tensor]:
    """Our tensors out of a checkpoint's.

    Arguments:
        tensors: The checkpoint.
        shapes: Of our tensors.
        layout: Where each of ours comes from.
        unused: Pattern of keys that the network is known not to use.

    Raises:
        ValueError: Keys that are missing or unknown, or shapes that do not fit; it names them.
    """
    sources = {name: layout(name) for name in shapes}
    needed = {key for source in sources.values() for key in source.keys}
    unknown = [key for key in tensors if key not in needed and not (unused and re.fullmatch(unused, key))]
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(f"Expected {_some(missing)}, found none. {_advice(tensors)}")
    if unknown:
        raise ValueError(f"Found {_some(unknown)}, which this network does not have. {_advice(tensors)}")
    return {name: _take(tensors, source, shapes[name]) for name, source in sources.items()}


def _take(tensors: Tensors, source: Source, shape: torch.Size) -> Tensor:
    found = [tensors[key] for key in source.keys]
    expected = list(shape[::-1] if source.transposed else shape)
    if len(found) > 1:
        expected[0] //= len(found)
    for key, tensor in zip(source.keys, found, strict=True):
        if list(tensor.shape) != expected:
            raise ValueError(
                f"{key}: expected the shape {expected}, found {list(tensor.shape)}. Is it a checkpoint of this size?"
            )
    whole = torch.cat(found) if len(found) > 1 else found[0]
    return (whole.T if source.transposed else whole).contiguous()


def _clip(tensors: Tensors, model: Config) -> dict[str, Tensor]:
    if any(key.startswith("vision_model.") for key in tensors):
        return gather(tensors, _clip_shapes(model), _hugging_face, POSITIONS)
    return gather(tensors, _clip_shapes(model), lambda name: Source((name,)), SIZES)


def _hugging_face(name: str) -> Source:
    """The names of a tensor of open_clip in transformers, where q, k and v are apart and projections transposed."""
    if name == "logit_scale":
        return Source((name,))
    if name in ("visual.proj", "text_projection"):
        return Source((f"{'visual_projection' if name == 'visual.proj' else name}.weight",), transposed=True)
    tower = "vision_model." if name.startswith("visual.") else "text_model."
    key = tower + name.removeprefix("visual.")
    for pattern, replacement in HUGGING_FACE_NAMES:
        key = re.sub(pattern, replacement, key)
    return Source(tuple(key.replace("{qkv}", letter) for letter in "qkv") if "{qkv}" in key else (key,))


def _fusion(name: str) -> Source:
    """The names of a tensor of `Fusion` in the authors' code."""
    kind, layer, rest = name.split(".", 2)
    names = {
        "to_prompt": {"ff_in.weight": "ff.0.weight", "ff_out.weight": "ff.2.weight"},
        "to_image": {
            "inv_freq": "rotary_emb.inv_freq",
            "proj.weight": "fused_attn_ff_proj.weight",
            "to_out.weight": "attn_out.weight",
            "ff_out.weight": "ff_out.1.weight",
        },
    }[kind]
    place = ("to_prompt", "to_image").index(kind)
    return Source((f"cross_model.layers.{layer}.{place}.fn.{names.get(rest, rest)}",))


def _head(name: str) -> Source:
    """In training there was dropout between the first layers, which counts in the authors' numbers."""
    index, _, rest = name.partition(".")
    return Source((f"layers.{(0, 2, 4, 6, 7)[int(index)]}.{rest}",))


def _below(prefix: str, layout: Layout) -> Layout:
    """A layout whose keys stand under a prefix."""

    def prefixed(name: str) -> Source:
        source = layout(name)
        return Source(tuple(prefix + key for key in source.keys), source.transposed)

    return prefixed


def _clip_shapes(model: Config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return _shapes(CLIP(**model))


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _write(folder: Path, files: Mapping[str, dict[str, Tensor]], **config: Config) -> None:
    """Write the tensors and then, so that a folder cut short is not taken for a whole one, the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    content = {key: dict(value) for key, value in config.items()}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:5])
    return shown if len(keys) <= 5 else f"{shown} and {len(keys) - 5} more"


def _advice(tensors: Tensors) -> str:
    return f"The checkpoint has {len(tensors)} tensors ({_some(list(tensors)[:3])} ...); is it of this layout and size?"
