"""The authors' file of ImageReward under our names."""

from dataclasses import asdict

import torch

from rewards.convert.layouts import Checkpoint, Files, Layout, Parts, Tensors, grid, heads, shapes, translate
from rewards.image_reward import ImageRewardConfig, ImageRewardNetwork, read_tokenizer
from rewards.weights import CONFIG, WEIGHTS

LAYOUT = Layout(
    renames=(
        (r"^vision\.embeddings\.class_embedding", "blip.visual_encoder.cls_token"),
        (r"^vision\.embeddings\.position_embedding", "blip.visual_encoder.pos_embed"),
        (r"^vision\.embeddings\.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
        (r"^vision\.encoder\.layers\.", "blip.visual_encoder.blocks."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"\.self_attn\.qkv\.", ".attn.qkv."),
        (r"\.self_attn\.projection\.", ".attn.proj."),
        (r"^vision\.post_layernorm\.", "blip.visual_encoder.norm."),
        (r"^text\.", "blip.text_encoder."),
        (r"^head\.", "mlp.layers."),
    ),
    unused=(
        r"blip\.text_encoder\.embeddings\.position_ids",  # 0, 1, 2, ...
        r"blip\.(vision|text)_proj\.(weight|bias)",  # BLIP's contrastive heads
    ),
)


def convert_image_reward(tensors: Tensors, parts: Parts) -> Files:
    """The tensors of the authors' `ImageReward.pt` under our names.

    Raises:
        ValueError: Missing, unexpected or wrongly shaped tensors, or a tokenizer of another network.
    """
    config = _sizes(Checkpoint(tensors, LAYOUT), parts)
    with torch.device("meta"):
        expected = shapes(ImageRewardNetwork(config))
    weights = translate(tensors, expected, LAYOUT)
    if parts.tokenizer:
        read_tokenizer(parts.tokenizer, config.vocabulary)
    return Files({WEIGHTS: weights}, {CONFIG: asdict(config)})


def _sizes(checkpoint: Checkpoint, parts: Parts) -> ImageRewardConfig:
    size, layers = checkpoint.size, checkpoint.layers
    patch = size("vision.embeddings.patch_embedding.weight", 2)
    vision_width, text_width = size("vision.post_layernorm.weight", 0), size("text.embeddings.LayerNorm.weight", 0)
    return ImageRewardConfig(
        image_size=patch * grid(size("vision.embeddings.position_embedding", 1)),
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=len(layers("vision.encoder.layers.{}.layer_norm1.weight")),
        vision_heads=heads(vision_width, parts.vision_heads, "vision"),
        text_width=text_width,
        text_layers=len(layers("text.encoder.layer.{}.intermediate.dense.weight")),
        text_heads=heads(text_width, parts.text_heads, "text"),
        text_hidden=size("text.encoder.layer.0.intermediate.dense.weight", 0),
        vocabulary=size("text.embeddings.word_embeddings.weight", 0),
        positions=size("text.embeddings.position_embeddings.weight", 0),
    )
