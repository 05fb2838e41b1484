"""Checkpoints in the layouts of their authors become folders of ours, and nothing is left over in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rewards.convert import VIT_H_14, VIT_L_14, convert_aesthetic, convert_clip, convert_mps, read_checkpoint
from rewards.pickscore import PickScore
from tests.rewards import golden
from tests.rewards.clip_rewards import CPU, MPS_FUSION, OPEN_CLIP, OPENAI

Damage = Callable[[dict[str, Tensor]], Any]


@pytest.fixture(scope="module")
def pickscore() -> dict[str, Tensor]:
    """The golden checkpoint in transformers' layout."""
    return golden.checkpoint("pickscore_small")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda tensors: tensors.pop("text_model.encoder.layers.1.self_attn.q_proj.bias"),
            r"Expected text_model.encoder.layers.1.self_attn.q_proj.bias, found none. The checkpoint has 111 tensors",
        ),
        (
            lambda tensors: tensors.update(extra=torch.zeros(1)),
            "Found extra, which this network does not have",
        ),
        (
            lambda tensors: tensors.update({"visual_projection.weight": torch.zeros(64, 32)}),
            r"visual_projection.weight: expected the shape \[32, 64\], found \[64, 32\]",
        ),
        (
            lambda tensors: tensors.update({"text_model.encoder.layers.0.self_attn.k_proj.weight": torch.zeros(24, 2)}),
            r"layers.0.self_attn.k_proj.weight: expected the shape \[24, 24\], found \[24, 2\]",
        ),
        (lambda tensors: tensors.clear(), "Expected .*text_model.embeddings|Expected .* and .* more, found none"),
    ],
    ids=["missing", "unknown", "transposed", "part of a stack", "empty"],
)
def test_what_does_not_fit_is_named(damage: Damage, message: str, pickscore: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = dict(pickscore)
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        convert_clip(tensors, OPEN_CLIP, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_sizes_in_openais_own_file_are_known_to_be_unused(tmp_path: Path) -> None:
    tensors = golden.checkpoint("hpsv1_small") | {"context_length": torch.tensor(77)}
    convert_clip(tensors, OPENAI, tmp_path)
    with pytest.raises(ValueError, match="Found position_ids"):
        convert_clip(tensors | {"position_ids": torch.arange(3)}, OPENAI, tmp_path)


def test_the_aesthetic_predictors_clip_may_come_from_the_hub(tmp_path: Path, pickscore: dict[str, Tensor]) -> None:
    convert_aesthetic(pickscore, golden.checkpoint("laion_head_small"), OPEN_CLIP, tmp_path)
    with pytest.raises(ValueError, match=r"layers.0.weight: expected the shape \[1024, 16\], found \[1024, 32\]"):
        convert_aesthetic(pickscore, golden.checkpoint("laion_head_small"), OPEN_CLIP | {"embed_dim": 16}, tmp_path)


def test_the_biases_that_mps_does_not_have_must_be_zero(tmp_path: Path) -> None:
    tensors = golden.checkpoint("mps_small")
    tensors["cross_model.layers.1.0.fn.norm.bias"] = torch.ones(32)
    with pytest.raises(ValueError, match=r"layers.1.0.fn.norm.bias must be zero"):
        convert_mps(tensors, OPEN_CLIP, tmp_path, MPS_FUSION)
    with pytest.raises(ValueError, match=r"Found cross_model.layers.1.0.fn.norm.weight, .* and 6 more"):
        convert_mps(golden.checkpoint("mps_small"), OPEN_CLIP, tmp_path, MPS_FUSION | {"layers": 1})


def test_a_conversion_cut_short_is_not_taken_for_a_whole_one(
    tmp_path: Path, pickscore: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_clip(pickscore, OPEN_CLIP, tmp_path)
    monkeypatch.setattr("rewards.convert.save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_clip(pickscore, OPEN_CLIP, tmp_path)
    with pytest.raises(ValueError, match="has no open_clip_config.json"):
        PickScore(tmp_path, CPU)


def test_the_published_configurations_have_the_published_sizes() -> None:
    counts = {}
    for name, config in (("L", VIT_L_14), ("H", VIT_H_14)):
        with torch.device("meta"):
            counts[name] = sum(parameter.numel() for parameter in CLIP(**config).parameters())
    assert counts == {"L": 427_616_513, "H": 986_109_441}


def test_the_names_are_transformers_own() -> None:
    """All tensors of a `CLIPModel` of the published size are used, in their own shapes."""
    from rewards.convert import _clip as converted  # pyright: ignore[reportPrivateUsage]

    text = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    config = CLIPConfig(
        text_config=text | {"projection_dim": 1024},
        vision_config=vision | {"projection_dim": 1024, "patch_size": 14},
        projection_dim=1024,
    )
    with torch.device("meta"):
        state = CLIPModel(config).state_dict()
    assert len(converted(state, VIT_H_14)) == len(CLIP(**OPEN_CLIP).state_dict()) + (29 + 21) * 12


def test_checkpoints_are_read_without_running_their_code(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3)}
    save_file(tensors, tmp_path / "plain.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save(tensors | {"input_resolution": 224}, tmp_path / "flat.pth")
    for name in ("plain.safetensors", "wrapped.pt", "flat.pth"):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == {"a"} and torch.equal(read["a"], tensors["a"])
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="holds more than tensors and would have to run its code"):
        read_checkpoint(tmp_path / "module.pth")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; give a file with a dictionary of tensors"):
        read_checkpoint(tmp_path / "list.pt")
