"""The authors' file of the RAHF port under our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rewards.rahf.config import RahfConfig
from rewards.rahf.network import ANY, TIED, RahfNetwork
from rewards.weights import shapes, translate

RENAMES = (
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
)
UNUSED = (
    r"vit\.pooler\.dense\.(weight|bias)",
    *(re.escape(name) for name in TIED),
)


def convert_rahf_port(original: Mapping[str, Tensor], config: RahfConfig) -> dict[str, Tensor]:
    """The tensors of the port's `rahf_model.pt` under our names, each once: T5 shares one table of tokens.

    Raises:
        ValueError: Missing, unexpected or wrongly shaped tensors, or a table of tokens that is not shared.
    """
    for name, stored in TIED.items():
        if name in original and stored in original and not torch.equal(original[name], original[stored]):
            raise ValueError(
                f"{name} must equal {stored}, which T5 shares with it; found other values. Restore the file."
            )
    with torch.device("meta"):
        expected = {key: shape for key, shape in shapes(RahfNetwork(config)).items() if key not in TIED}
    return translate(original, expected, RENAMES, UNUSED)
