"""Rewards on a CLIP: HPS v1, v2 and v2.1, PickScore, MPS, and LAION's aesthetic predictor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from open_clip import CLIP
from torch import Tensor

from rewards.aesthetic import HEAD, make_head
from rewards.clip import CONFIG, WEIGHTS
from rewards.convert.layouts import Checkpoint, Files, Layout, Parts, Tensors, grid, heads, shapes, translate
from rewards.mps import FUSION, FUSION_CONFIG
from rewards.mps_fusion import HEAD_WIDTH, Fusion

OPEN_CLIP = Layout(unused=(r"input_resolution|context_length|vocab_size",))
"""The names are ours; OpenAI's own files hold some sizes, too."""
HUGGING_FACE = Layout(
    renames=(
        (r"^visual\.proj$", "visual_projection.weight"),
        (r"^text_projection$", "text_projection.weight"),
        (r"^visual\.", "vision_model."),
        (r"^(transformer|token_embedding|positional_embedding|ln_final)\b", r"text_model.\1"),
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
    ),
    unused=(r".*\.position_ids",),  # the numbers from 0 on, which old versions of transformers saved
    transposed=("visual.proj", "text_projection"),
)
MPS_CLIP = replace(HUGGING_FACE, renames=(*HUGGING_FACE.renames, (r"^", "model.")))
MPS_FUSION = Layout(
    renames=(
        (r"^to_prompt\.(\d+)\.", r"cross_model.layers.\1.0.fn."),
        (r"^to_image\.(\d+)\.", r"cross_model.layers.\1.1.fn."),
        (r"\.ff_in\.", ".ff.0."),
        (r"\.0\.fn\.ff_out\.", ".0.fn.ff.2."),
        (r"\.1\.fn\.ff_out\.", ".1.fn.ff_out.1."),
        (r"\.inv_freq$", ".rotary_emb.inv_freq"),
        (r"\.fn\.proj\.", ".fn.fused_attn_ff_proj."),
        (r"\.1\.fn\.to_out\.", ".1.fn.attn_out."),
    ),
    unused=(r".*\.norm\.bias",),
)
AESTHETIC_HEAD = Layout(
    # In training there was dropout between the first layers, which counts in the authors' numbers.
    renames=tuple((rf"^{ours}\.", f"layers.{theirs}.") for ours, theirs in ((4, 7), (3, 6), (2, 4), (1, 2), (0, 0)))
)


def convert_openai(tensors: Tensors, parts: Parts) -> Files:
    """A CLIP with OpenAI's activation and tokenizer, in either layout: HPS v1."""
    weights, config = _clip(tensors, parts, _clip_layout(tensors))
    return Files({WEIGHTS: weights}, {CONFIG: {"model_cfg": _as_openai(config)}})


def convert_open_clip(tensors: Tensors, parts: Parts) -> Files:
    """A CLIP with open_clip's activation and tokenizer, in either layout: HPS v2 and v2.1, PickScore."""
    weights, config = _clip(tensors, parts, _clip_layout(tensors))
    return Files({WEIGHTS: weights}, {CONFIG: {"model_cfg": config}})


def convert_mps(tensors: Tensors, parts: Parts) -> Files:
    """The state dict of MPS: a CLIP of transformers under `model.`, the fusion under `cross_model.`."""
    clip = {key: value for key, value in tensors.items() if not key.startswith("cross_model.")}
    cross = {key: value for key, value in tensors.items() if key.startswith("cross_model.")}
    for key in [key for key in cross if key.endswith(".norm.bias")]:
        if cross[key].any():
            raise ValueError(f"{key} must be zero, as in the authors' code, which has no such parameter.")
    weights, config = _clip(clip, parts, MPS_CLIP)
    checkpoint = Checkpoint(cross, MPS_FUSION)
    fusion = {
        "layers": len(checkpoint.layers("to_prompt.{}.to_q.weight")),
        "heads": checkpoint.size("to_prompt.0.to_q.weight", 0) // HEAD_WIDTH,
    }
    with torch.device("meta"):
        expected = shapes(Fusion(config["embed_dim"], **fusion))
    fused = translate(cross, expected, MPS_FUSION)
    return Files({WEIGHTS: weights, FUSION: fused}, {CONFIG: {"model_cfg": config, FUSION_CONFIG: fusion}})


def convert_aesthetic(tensors: Tensors, parts: Parts) -> Files:
    """The head of linear layers, and OpenAI's CLIP that it stands upon, in either layout."""
    weights, config = _clip(parts.clip or {}, parts, _clip_layout(parts.clip or {}))
    with torch.device("meta"):
        expected = shapes(make_head(config["embed_dim"]))
    head = translate(tensors, expected, AESTHETIC_HEAD)
    return Files({WEIGHTS: weights, HEAD: head}, {CONFIG: {"model_cfg": _as_openai(config)}})


def _clip_layout(tensors: Tensors) -> Layout:
    return HUGGING_FACE if any(key.startswith("vision_model.") for key in tensors) else OPEN_CLIP


def _clip(tensors: Tensors, parts: Parts, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Our tensors, and the configuration in open_clip's terms."""
    config = _sizes(Checkpoint(tensors, layout), parts)
    with torch.device("meta"):
        expected = shapes(CLIP(**config))
    return translate(tensors, expected, layout), config


def _sizes(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    width, text_width = checkpoint.size("visual.conv1.weight", 0), checkpoint.size("token_embedding.weight", 1)
    patch = checkpoint.size("visual.conv1.weight", 3)
    return {
        "embed_dim": checkpoint.size("text_projection", 1),
        "vision_cfg": {
            "image_size": patch * grid(checkpoint.size("visual.positional_embedding", 0)),
            "layers": len(checkpoint.layers("visual.transformer.resblocks.{}.ln_1.weight")),
            "width": width,
            "head_width": width // heads(width, parts.vision_heads, "vision"),
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": checkpoint.size("positional_embedding", 0),
            "vocab_size": checkpoint.size("token_embedding.weight", 0),
            "width": text_width,
            "heads": heads(text_width, parts.text_heads, "text"),
            "layers": len(checkpoint.layers("transformer.resblocks.{}.ln_1.weight")),
        },
    }


def _as_openai(config: Mapping[str, Any]) -> dict[str, Any]:
    """No tensor tells the activation and the tokenizer."""
    return {**config, "quick_gelu": True, "text_cfg": config["text_cfg"] | {"tokenizer_mode": "openai"}}
