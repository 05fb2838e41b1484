"""A RAHF to train: of a trained one, or of a ViT and a T5 (arXiv 2312.10240 starts from both, pre-trained)."""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt, log2
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration, ViTModel

from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.network import NORM_EPS, VIT_NORM_EPS, RahfNetwork

HEADS = ("score_heads.", "heatmap_heads.", "readouts.")

FIXED: Mapping[str, Mapping[str, Any]] = {
    "vit": {"num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": VIT_NORM_EPS, "qkv_bias": True},
    "t5": {
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "layer_norm_epsilon": NORM_EPS,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    },
}
"""How RAHF computes its towers, whatever their sizes."""
EXAMPLES = {"vit": "google/vit-base-patch16-224", "t5": "google-t5/t5-base"}


def of_towers(vit: str, t5: str, chosen: RahfConfig) -> tuple[RahfNetwork, Tokenizer]:
    """A network whose ViT and T5 are pre-trained, its heads and the projection between the two being new.

    Arguments:
        vit: Folder or repository of a `ViTModel`; its table of positions is resampled (bicubic) to another image size.
        t5: Folder or repository of a T5 of the first version (with ReLU, and one table of tokens), with its tokenizer;
            encoder and decoder have equally many layers.
        chosen: Image size, form and heads; what the towers decide is taken from them.

    Raises:
        ValueError: Models of another kind, or heads whose doublings do not undo the patches.
    """
    config = sizes_of(vit, t5, chosen)
    network = RahfNetwork(config)
    seeing = ViTModel.from_pretrained(vit, add_pooling_layer=False, dtype=torch.float32).state_dict()
    place = next(name for name in seeing if name.endswith("position_embeddings"))
    seeing[place] = resample_positions(seeing[place], config.grid)
    network.vit.load_state_dict(seeing)
    network.t5.load_state_dict(T5ForConditionalGeneration.from_pretrained(t5, dtype=torch.float32).state_dict())
    return network, AutoTokenizer.from_pretrained(t5).backend_tokenizer


def of_critic(critic: Rahf, chosen: RahfConfig, weights: str) -> tuple[RahfNetwork, Tokenizer]:
    """A network of a trained critic's sizes.

    Arguments:
        critic: A RAHF.
        chosen: Its configuration, in another form if so wished.
        weights: What is kept: "all", "towers" (the heads are new), or "none".

    Raises:
        ValueError: All weights are to be kept, in another form.
    """
    network = RahfNetwork(chosen)
    if weights == "all" and chosen != critic.config:
        raise ValueError("The heads of another form are others: keep the weights of the towers, or the form.")
    if weights != "none":
        is_new = HEADS if weights == "towers" else ()
        kept = {name: value for name, value in critic.network.state_dict().items() if not name.startswith(is_new)}
        network.load_state_dict(network.state_dict() | kept)
    return network, critic.tokenizer


def sizes_of(vit: str, t5: str, chosen: RahfConfig) -> RahfConfig:
    """The configuration of a network of these towers.

    Raises:
        ValueError: See `of_towers`.
    """
    vision, text = AutoConfig.from_pretrained(vit), AutoConfig.from_pretrained(t5)
    _check_tower(vit, vision, "vit", FIXED["vit"])
    _check_tower(t5, text, "t5", FIXED["t5"])
    _check_tower(t5, text, "t5", {"num_decoder_layers": text.num_layers})
    config = replace(
        chosen,
        patch_size=vision.patch_size,
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_hidden=vision.intermediate_size,
        text_width=text.d_model,
        text_layers=text.num_layers,
        text_heads=text.num_heads,
        text_head_width=text.d_kv,
        text_hidden=text.d_ff,
        vocabulary=text.vocab_size,
    )
    check_sizes(config)
    return config


def _check_tower(path: str, config: Any, kind: str, needed: Mapping[str, Any]) -> None:
    """Refuse, with a ValueError, a tower that RAHF could not hold, or would compute otherwise than it was trained."""
    if config.model_type != kind:
        raise ValueError(f"{path} is a {config.model_type}; RAHF is made of a {kind}. Give one.")
    others = {name: getattr(config, name) for name, value in needed.items() if getattr(config, name) != value}
    if others:
        came, wanted = (", ".join(f"{name} {of[name]}" for name in others) for of in (others, needed))
        raise ValueError(f"{path} has {came}; RAHF needs {wanted}. Give another {kind}, such as {EXAMPLES[kind]}.")


def check_sizes(config: RahfConfig) -> None:
    """Refuse, with a ValueError, an image that is not whole patches, and heads that give maps of another size."""
    if config.image_size % config.patch_size:
        raise ValueError(f"Images of {config.image_size} pixels are not whole patches of {config.patch_size}.")
    doublings = len(config.heatmap_widths) - 2
    if 2**doublings != config.patch_size:
        raise ValueError(
            f"The heatmap head has widths for {doublings} doublings; patches of {config.patch_size} pixels need "
            f"{log2(config.patch_size):g}. Give two widths more than that."
        )


def resample_positions(table: Float[Tensor, "1 old width"], grid: int) -> Float[Tensor, "1 new width"]:
    """The positions of [CLS] and of a square of patches, for a square of `grid` x `grid` patches."""
    first, patches = table[:, :1], table[:, 1:]
    side = isqrt(patches.shape[1])
    if side == grid:
        return table
    square = patches.transpose(1, 2).unflatten(2, (side, side))
    resampled = interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([first, resampled.flatten(2).transpose(1, 2)], dim=1)
