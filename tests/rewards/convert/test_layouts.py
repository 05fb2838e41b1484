"""Checkpoints in the layouts of their authors become ours, sizes included, and nothing is left over in silence."""

from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rewards.clip import CONFIG, WEIGHTS
from rewards.convert.clip import MPS_FUSION, convert_aesthetic, convert_mps, convert_open_clip, convert_openai
from rewards.convert.image_reward import LAYOUT as image_reward_layout
from rewards.convert.image_reward import convert_image_reward
from rewards.convert.layouts import Layout, Parts
from rewards.convert.rahf import LAYOUT as rahf_layout
from rewards.convert.rahf import convert_rahf_port
from rewards.image_reward import ImageRewardConfig, ImageRewardNetwork
from rewards.mps_fusion import Fusion
from rewards.rahf.config import PORT
from rewards.rahf.network import TIED, RahfNetwork
from tests.rewards import golden
from tests.rewards.clip_rewards import OPEN_CLIP, OPENAI

Damage = Callable[[dict[str, Tensor]], Any]
NONE = Parts()
VIT_H_14: dict[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""LAION's, of HPS v2, PickScore and MPS."""
VIT_L_14: dict[str, Any] = {
    "embed_dim": 768,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "head_width": 64, "patch_size": 14},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 768,
        "heads": 12,
        "layers": 12,
        "tokenizer_mode": "openai",
    },
}
"""OpenAI's, of HPS v1 and the aesthetic predictor."""


@pytest.fixture(scope="module")
def pickscore() -> dict[str, Tensor]:
    """The golden checkpoint in transformers' layout."""
    return golden.checkpoint("pickscore_small")


@pytest.fixture
def on_meta() -> Generator[None, None, None]:
    """Shapes alone: no tensor that is made here has values."""
    with torch.device("meta"):
        yield


def _remove(*keys: str) -> Damage:
    return lambda tensors: [tensors.pop(key) for key in keys]


def _put(key: str, *shape: int) -> Damage:
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _remove("text_model.encoder.layers.1.self_attn.q_proj.bias"),
            r"layers.1.self_attn.q_proj.bias is missing \(expected \(24,\)\). The checkpoint has 111 tensors",
        ),
        (_put("extra", 1), r"extra \(1,\) is unexpected"),
        (
            _put("visual_projection.weight", 64, 32),
            r"visual_projection.weight must be \(32, 64\), found \(64, 32\)",
        ),
        (
            _put("text_model.encoder.layers.0.self_attn.k_proj.weight", 24, 2),
            r"layers.0.self_attn.k_proj.weight must be \(24, 24\), found \(24, 2\)",
        ),
        (
            _put("vision_model.embeddings.position_embedding.weight", 250, 64),
            r"position_embedding.weight must be \(257, 64\), found \(250, 64\)",
        ),
        (_put("text_model.embeddings.token_embedding.weight", 3), r"token_embedding.weight must have 2 or more axes"),
        (
            _remove("vision_model.embeddings.patch_embedding.weight"),
            "patch_embedding.weight is missing, which says how large the network is",
        ),
        (
            lambda tensors: [tensors.pop(key) for key in list(tensors) if "vision_model.encoder.layers.0" in key],
            r"layers.1.* is unexpected; .*; and \d+ more",
        ),
    ],
    ids=["missing", "unknown", "transposed", "part of a stack", "grid", "axes", "size", "first layer"],
)
def test_what_does_not_fit_is_named(damage: Damage, message: str, pickscore: dict[str, Tensor]) -> None:
    tensors = dict(pickscore)
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        convert_open_clip(tensors, OPEN_CLIP)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (NONE, "No published vision tower is 64 wide, .* Give vision_heads"),
        (Parts(vision_heads=4), "No published text tower is 24 wide, .* Give text_heads"),
        (Parts(vision_heads=4, text_heads=7), "text_heads must divide the width of the text tower, 24; 7 was given"),
    ],
)
def test_heads_that_no_tensor_tells_are_asked_for(parts: Parts, message: str, pickscore: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        convert_open_clip(pickscore, parts)


def test_heads_that_the_tensors_tell_are_not_overruled() -> None:
    with pytest.raises(ValueError, match="The tensors say 2 text_heads, not 4"):
        convert_rahf_port(golden.checkpoint("rahf_small_single"), Parts(vision_heads=4, text_heads=4))


def test_sizes_in_openais_own_file_are_known_to_be_unused() -> None:
    tensors = golden.checkpoint("hpsv1_small") | {"context_length": torch.tensor(77)}
    assert convert_openai(tensors, OPENAI).tensors[WEIGHTS].keys() == tensors.keys() - {"context_length"}
    with pytest.raises(ValueError, match=r"position_ids \(3,\) is unexpected"):
        convert_openai(tensors | {"position_ids": torch.arange(3)}, OPENAI)


def test_the_aesthetic_predictors_clip_may_come_from_the_hub(pickscore: dict[str, Tensor]) -> None:
    head = golden.checkpoint("laion_head_small")
    assert len(convert_aesthetic(head, replace(OPEN_CLIP, clip=pickscore)).tensors) == 2
    with pytest.raises(ValueError, match=r"layers.0.weight must be \(1024, 32\), found \(1024, 16\)"):
        convert_aesthetic(head | {"layers.0.weight": torch.zeros(1024, 16)}, replace(OPEN_CLIP, clip=pickscore))


def test_the_biases_that_mps_does_not_have_must_be_zero() -> None:
    tensors = golden.checkpoint("mps_small")
    tensors["cross_model.layers.1.0.fn.norm.bias"] = torch.ones(32)
    with pytest.raises(ValueError, match=r"layers.1.0.fn.norm.bias must be zero"):
        convert_mps(tensors, OPEN_CLIP)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("mlp.layers.7.bias"), r"mlp\.layers\.7\.bias is missing \(expected \(1,\)\)"),
        (_put("blip.visual_encoder.extra", 2), r"blip\.visual_encoder\.extra \(2,\) is unexpected"),
        (
            _put("blip.text_encoder.embeddings.LayerNorm.bias", 31),
            r"blip\.text_encoder\.embeddings\.LayerNorm\.bias must be \(32,\), found \(31,\)",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_file_of_image_reward_that_does_not_fit_is_refused(damage: Damage, message: str) -> None:
    state = golden.checkpoint("imagereward_small")
    damage(state)
    with pytest.raises(ValueError, match=message):
        convert_image_reward(state, Parts(vision_heads=3, text_heads=2))


@pytest.mark.usefixtures("on_meta")
def test_the_published_clips_are_recognised_by_their_tensors() -> None:
    for model, convert, numbers in (
        (VIT_L_14, convert_openai, 427_616_513),
        (VIT_H_14, convert_open_clip, 986_109_441),
    ):
        tensors, configs = convert(CLIP(**model).state_dict(), NONE)
        assert configs == {CONFIG: {"model_cfg": model}}
        assert sum(tensor.numel() for tensor in tensors[WEIGHTS].values()) == numbers


@pytest.mark.usefixtures("on_meta")
def test_the_published_networks_are_recognised_by_their_tensors() -> None:
    image_reward = _theirs(ImageRewardNetwork(ImageRewardConfig()), image_reward_layout)
    assert convert_image_reward(image_reward, NONE).configs == {"config.json": asdict(ImageRewardConfig())}
    rahf = {key: value for key, value in _theirs(RahfNetwork(PORT), rahf_layout).items() if key not in TIED}
    assert convert_rahf_port(rahf, NONE).configs == {"config.json": asdict(PORT)}


@pytest.mark.usefixtures("on_meta")
def test_the_names_are_transformers_own() -> None:
    """All tensors of a `CLIPModel` of the published size are used, in their own shapes; MPS has a fusion, too."""
    text = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    config = CLIPConfig(
        text_config=text | {"projection_dim": 1024},
        vision_config=vision | {"projection_dim": 1024, "patch_size": 14},
        projection_dim=1024,
    )
    state = CLIPModel(config).state_dict()
    assert convert_open_clip(state, NONE).configs == {CONFIG: {"model_cfg": VIT_H_14}}
    mps = {f"model.{key}": value for key, value in state.items()} | _theirs(
        Fusion(1024, layers=4, heads=16), MPS_FUSION
    )
    expected = {"model_cfg": VIT_H_14, "fusion_cfg": {"layers": 4, "heads": 16}}
    assert convert_mps(mps, NONE).configs == {CONFIG: expected}


def _theirs(network: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The state dict of a network of ours under the names of its authors, who stack no tensors in it."""
    return {layout.sources(key)[0]: value for key, value in network.state_dict().items()}
