"""Checkpoints in the layouts of their authors become folders of ours, and nothing is left over in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from rewards.clip import CONFIG, WEIGHTS
from rewards.convert.checkpoint import read_checkpoint
from rewards.convert.clip import convert_aesthetic, convert_mps, convert_open_clip, convert_openai
from rewards.convert.layouts import Parts
from rewards.convert.published import PUBLISHED, find_published, recognise
from tests.rewards import golden
from tests.rewards.clip_rewards import FOUR_AND_TWO, ONE_HEAD

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
            r"text_model.encoder.layers.1.self_attn.q_proj.bias is missing \(expected \(24,\)\). The checkpoint has",
        ),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), r"extra \(1,\) is unexpected"),
        (
            lambda tensors: tensors.update({"visual_projection.weight": torch.zeros(64, 32)}),
            r"visual_projection.weight must be \(32, 64\), found \(64, 32\)",
        ),
        (
            lambda tensors: tensors.update({"text_model.encoder.layers.0.self_attn.k_proj.weight": torch.zeros(24, 2)}),
            r"layers.0.self_attn.k_proj.weight must be \(24, 24\), found \(24, 2\)",
        ),
        (
            lambda tensors: tensors.pop("text_projection.weight"),
            "text_projection.weight is missing, which says how large the network is",
        ),
        (
            lambda tensors: tensors.update({"text_projection.weight": torch.zeros(3)}),
            r"text_projection.weight must have 2 or more axes, found \(3,\)",
        ),
    ],
    ids=["missing", "unknown", "transposed", "part of a stack", "size missing", "size of another kind"],
)
def test_what_does_not_fit_is_named(damage: Damage, message: str, pickscore: dict[str, Tensor]) -> None:
    tensors = dict(pickscore)
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        convert_open_clip(tensors, FOUR_AND_TWO)


def test_sizes_in_openais_own_file_are_known_to_be_unused() -> None:
    tensors = golden.checkpoint("hpsv1_small") | {"context_length": torch.tensor(77)}
    assert len(convert_openai(tensors, ONE_HEAD).tensors[WEIGHTS]) == len(tensors) - 1
    with pytest.raises(ValueError, match=r"position_ids \(3,\) is unexpected"):
        convert_openai(tensors | {"position_ids": torch.arange(3)}, ONE_HEAD)


def test_heads_are_as_published_or_as_given(pickscore: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"No published vision tower is 64 wide.* Give vision_heads"):
        convert_open_clip(pickscore, Parts())
    with pytest.raises(ValueError, match=r"text_heads must divide the width of the text tower, 24; 5 was given"):
        convert_open_clip(pickscore, Parts(vision_heads=4, text_heads=5))


def test_the_aesthetic_predictors_clip_may_come_from_the_hub(pickscore: dict[str, Tensor]) -> None:
    head = golden.checkpoint("laion_head_small")
    files = convert_aesthetic(head, replace(FOUR_AND_TWO, clip=pickscore))
    assert files.configs[CONFIG]["model_cfg"]["quick_gelu"]
    head["layers.0.weight"] = torch.zeros(1024, 16)
    with pytest.raises(ValueError, match=r"layers.0.weight must be \(1024, 32\), found \(1024, 16\)"):
        convert_aesthetic(head, replace(FOUR_AND_TWO, clip=pickscore))


def test_the_biases_that_mps_does_not_have_must_be_zero() -> None:
    tensors = golden.checkpoint("mps_small")
    tensors["cross_model.layers.1.0.fn.norm.bias"] = torch.ones(32)
    with pytest.raises(ValueError, match=r"layers.1.0.fn.norm.bias must be zero"):
        convert_mps(tensors, FOUR_AND_TWO)


def test_the_names_and_sizes_are_those_of_the_published_networks() -> None:
    """All tensors of a `CLIPModel` of the published size are used, and give open_clip's configuration."""
    text = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
    config = CLIPConfig(
        text_config=text | {"projection_dim": 1024},
        vision_config=vision | {"projection_dim": 1024, "patch_size": 14},
        projection_dim=1024,
    )
    with torch.device("meta"):
        state = CLIPModel(config).state_dict()
        files = convert_open_clip(state, Parts())
        config = files.configs[CONFIG]["model_cfg"]
        model = CLIP(**config)
    assert sum(tensor.numel() for tensor in files.tensors[WEIGHTS].values()) == 986_109_441
    assert (config["vision_cfg"]["head_width"], config["text_cfg"]["heads"]) == (80, 16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 986_109_441


def test_a_layout_is_recognised_and_another_is_named() -> None:
    assert recognise(golden.checkpoint("mps_small"), PUBLISHED["mps"].layouts) == "MPS"
    message = r"must be MPS .*; it has the layout of a CLIP of transformers, which is converted as hps-v1 or"
    with pytest.raises(ValueError, match=message):
        recognise(golden.checkpoint("pickscore_small"), PUBLISHED["mps"].layouts)
    with pytest.raises(ValueError, match=r"it has 1 tensors of no known layout \(a ...\)"):
        recognise({"a": torch.zeros(1)}, PUBLISHED["mps"].layouts)
    with pytest.raises(ValueError, match=r"No checkpoint is converted as 'hps2'. Nearest names: hps-v2"):
        find_published("hps2")


def test_checkpoints_are_read_without_running_their_code(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3)}
    save_file(tensors, tmp_path / "plain.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save(tensors | {"input_resolution": 224}, tmp_path / "flat.pth")
    for name in ("plain.safetensors", "wrapped.pt", "flat.pth"):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == {"a"} and torch.equal(read["a"], tensors["a"])
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; give a file with a dictionary of tensors"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 half an archive"], ids=["empty", "junk", "torn"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x{suffix} is damaged"):
        read_checkpoint(tmp_path / f"x{suffix}")


class Block(nn.Module):
    """A module with a child, a buffer, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.register_buffer("mean", torch.ones(4))
        self.register_buffer("passing", torch.ones(5), persistent=False)


def test_a_pickled_module_is_read_apart_where_that_is_allowed(tmp_path: Path) -> None:
    module, path = Block(), tmp_path / "module.pth"
    torch.save(module, path)
    with pytest.raises(ValueError, match=r"holds not only tensors but pickled objects \(.*Block.*give --allow-pickle"):
        read_checkpoint(path)
    read = read_checkpoint(path, allow_pickle=True)
    assert read.keys() == module.state_dict().keys() == {"inner.weight", "inner.bias", "mean"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(read[name], tensor)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class State:
    """Its state runs a command, later than its making."""

    def __init__(self, marker: Path) -> None:
        self.weight = torch.zeros(1)
        self.bomb = Bomb(marker)


@pytest.mark.parametrize("kind", [Bomb, State])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, kind: type, allow_pickle: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "bomb": kind(marker)}, path)
    with pytest.raises(ValueError, match="was not read: it calls" if allow_pickle else "holds not only tensors"):
        read_checkpoint(path, allow_pickle)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it is one
