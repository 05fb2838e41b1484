"""The authors' file of the RAHF port under our names."""

import re
from dataclasses import asdict

import torch

from rewards.convert.layouts import Checkpoint, Files, Layout, Parts, Tensors, grid, heads, shapes, translate
from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import read_tokenizer
from rewards.rahf.network import ANY, HEATMAPS, SCORES, TIED, RahfNetwork
from rewards.weights import CONFIG, WEIGHTS

LAYOUT = Layout(
    renames=(
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^projection\.", "visual_token_projection."),
        (r"^(heatmap|score)_heads\.", r"\1_predictor."),
        (rf"_predictor\.{ANY}\.", "_predictor."),
        (r"^(heatmap_predictor.*)\.entry\.", r"\1.conv_layers."),
        (r"^(heatmap_predictor.*)\.up\.", r"\1.deconv_layers."),
        (r"^(heatmap_predictor.*)\.refine\.", r"\1.conv_layers2."),
        (r"^(heatmap_predictor.*)\.exit\.0\.", r"\1.last_conv1."),
        (r"^(heatmap_predictor.*)\.exit\.2\.", r"\1.last_conv2."),
        (r"^(score_predictor.*)\.convs\.", r"\1.conv_layers."),
        (r"^(score_predictor.*)\.dense\.", r"\1.linear_layers."),
    ),
    unused=(r"vit\.pooler\.dense\.(weight|bias)", *(re.escape(name) for name in TIED)),
)


def convert_rahf_port(tensors: Tensors, parts: Parts) -> Files:
    """The tensors of the port's `rahf_model.pt` under our names, each once: T5 shares one table of tokens.

    Raises:
        ValueError: Missing, unexpected or wrongly shaped tensors, a table of tokens that is not shared, or a tokenizer
            of another network.
    """
    for name, stored in TIED.items():
        if name in tensors and stored in tensors and not torch.equal(tensors[name], tensors[stored]):
            raise ValueError(
                f"{name} must equal {stored}, which T5 shares with it; found other values. Restore the file."
            )
    config = _sizes(Checkpoint(tensors, LAYOUT), parts)
    with torch.device("meta"):
        expected = {key: shape for key, shape in shapes(RahfNetwork(config)).items() if key not in TIED}
    weights = translate(tensors, expected, LAYOUT)
    if parts.tokenizer:
        read_tokenizer(parts.tokenizer, config.vocabulary)
    return Files({WEIGHTS: weights}, {CONFIG: asdict(config)})


def _sizes(checkpoint: Checkpoint, parts: Parts) -> RahfConfig:
    size, layers = checkpoint.size, checkpoint.layers
    prompted = bool(layers(f"score_heads.{ANY}.convs.{{}}.weight"))
    heatmap, score = (ANY, ANY) if prompted else (HEATMAPS[0], SCORES[0])
    doublings = layers(f"heatmap_heads.{heatmap}.up.{{}}.0.weight")
    dense = layers(f"score_heads.{score}.dense.{{}}.weight", step=2)
    patch = size("vit.embeddings.patch_embeddings.projection.weight", 2)
    vision_width, attention = size("vit.layernorm.weight", 0), "t5.encoder.block.0.layer.0.SelfAttention"
    text_heads = size(f"{attention}.relative_attention_bias.weight", 1)
    if parts.text_heads not in (None, text_heads):
        raise ValueError(f"The tensors say {text_heads} text_heads, not {parts.text_heads}; leave them out.")
    return RahfConfig(
        image_size=patch * grid(size("vit.embeddings.position_embeddings", 1)),
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=len(layers("vit.layers.{}.layernorm_before.weight")),
        vision_heads=heads(vision_width, parts.vision_heads, "vision"),
        vision_hidden=size("vit.layers.0.mlp.fc1.weight", 0),
        text_width=size("t5.shared.weight", 1),
        text_layers=len(layers("t5.encoder.block.{}.layer.1.layer_norm.weight")),
        text_heads=text_heads,
        text_head_width=size(f"{attention}.q.weight", 0) // text_heads,
        text_hidden=size("t5.encoder.block.0.layer.1.DenseReluDense.wi.weight", 0),
        vocabulary=size("t5.shared.weight", 0),
        heatmap_widths=(
            *(size(f"heatmap_heads.{heatmap}.entry.{layer}.weight", 0) for layer in (0, 3)),
            *(size(name, 1) for name in doublings),
        ),
        score_widths=tuple(size(name, 0) for name in layers(f"score_heads.{score}.convs.{{}}.weight", step=3)),
        score_hidden=tuple(size(name, 0) for name in dense[:-1]),
        prompted=prompted,
    )
