"""A RAHF to train starts at a ViT and a T5 of transformers, or at a trained one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.network import RahfNetwork
from rewards.rahf.start import of_critic, of_towers, resample_positions, sizes_of
from tests.rewards.test_rahf import TINY
from tests.rewards.tokenizers_for_tests import tiny_t5

CHOSEN = RahfConfig(
    image_size=32, heatmap_widths=(8, 8, 8, 6, 4), score_widths=(8, 4), score_hidden=(6,), heads="paper", prompted=True
)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder / "vit")
    for name, projection in (("t5", "relu"), ("gated", "gated-gelu")):
        config = T5Config(
            vocab_size=64, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, feed_forward_proj=projection
        )
        config.tie_word_embeddings = True
        T5ForConditionalGeneration(config).save_pretrained(folder / name)
    PreTrainedTokenizerFast(tokenizer_object=tiny_t5(), pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder / "t5"
    )
    return str(folder / "vit"), str(folder / "t5")


def test_the_towers_of_transformers_are_inside(towers: tuple[str, str]) -> None:
    network, tokenizer = of_towers(*towers, CHOSEN)
    text = T5ForConditionalGeneration.from_pretrained(towers[1])
    assert torch.equal(network.t5.shared.weight, text.shared.weight)
    ids = torch.tensor([[5, 6, 1]])
    own = network.t5.encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(own, text.encoder(input_ids=ids).last_hidden_state)
    seeing = ViTModel.from_pretrained(towers[0], add_pooling_layer=False)
    small = ViTModel.from_pretrained(towers[0], add_pooling_layer=False, image_size=16)
    pixels = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(seeing(pixels).last_hidden_state, small(pixels).last_hidden_state)
    first, _ = of_towers(*towers, replace(CHOSEN, image_size=16))
    torch.testing.assert_close(first.vit(pixels).last_hidden_state, seeing(pixels).last_hidden_state)
    critic = Rahf.of(network.eval(), tokenizer)
    said = critic.critique(torch.rand(2, 3, 20, 24), ["a cat", "two dogs"])
    assert [tuple(one.shape) for one in said.heatmaps["misalignment"]] == [(20, 24)] * 2


def test_what_does_not_fit_is_refused(towers: tuple[str, str]) -> None:
    vit, t5 = towers
    with pytest.raises(ValueError, match="is a t5; RAHF is made of a vit"):
        of_towers(t5, t5, CHOSEN)
    with pytest.raises(ValueError, match="has feed_forward_proj gated-gelu; RAHF needs feed_forward_proj relu"):
        of_towers(vit, t5.replace("t5", "gated"), CHOSEN)
    with pytest.raises(ValueError, match="widths for 4 doublings; patches of 8 pixels need 3"):
        of_towers(vit, t5, replace(CHOSEN, heatmap_widths=(8, 8, 8, 8, 8, 8)))
    with pytest.raises(ValueError, match="Images of 36 pixels are not whole patches of 8"):
        of_towers(vit, t5, replace(CHOSEN, image_size=36))


@pytest.mark.parametrize(
    ("tower", "change", "fault"),
    [
        (0, {"hidden_act": "relu"}, "has hidden_act relu; RAHF needs hidden_act gelu. Give another vit"),
        (0, {"layer_norm_eps": 1e-6}, "has layer_norm_eps 1e-06; RAHF needs layer_norm_eps 1e-12"),
        (0, {"qkv_bias": False, "num_channels": 1}, "has num_channels 1, qkv_bias False; RAHF needs num_channels 3"),
        (1, {"num_decoder_layers": 3}, "has num_decoder_layers 3; RAHF needs num_decoder_layers 2. Give another t5"),
        (1, {"layer_norm_epsilon": 1e-5}, "has layer_norm_epsilon 1e-05; RAHF needs layer_norm_epsilon 1e-06"),
        (1, {"relative_attention_max_distance": 64}, "has relative_attention_max_distance 64; RAHF needs"),
    ],
)
def test_towers_that_would_be_computed_otherwise_are_refused(
    tower: int, change: dict[str, Any], fault: str, towers: tuple[str, str], tmp_path: Path
) -> None:
    given = [*towers]
    AutoConfig.from_pretrained(towers[tower], **change).save_pretrained(tmp_path)
    given[tower] = str(tmp_path)
    with pytest.raises(ValueError, match=fault):
        sizes_of(given[0], given[1], CHOSEN)


def test_positions_are_resampled_as_a_picture_and_cls_stays() -> None:
    side = torch.arange(4.0)
    ramp = (side[:, None] + 10 * side[None]).reshape(1, 16, 1)
    table = torch.cat([torch.full((1, 1, 1), 99.0), ramp], dim=1)
    assert resample_positions(table, 4) is table
    found = resample_positions(table, 8)
    assert found.shape == (1, 65, 1) and found[0, 0, 0] == 99
    square = found[0, 1:, 0].reshape(8, 8)
    assert (square.diff(dim=0)[2:5, 2:6] - 0.5).abs().max() < 0.1  # a ramp stays one, away from the borders
    assert (square.diff(dim=1)[2:6, 2:5] - 5.0).abs().max() < 1


@pytest.mark.parametrize("weights", ["all", "towers", "none"])
def test_of_a_trained_one_is_kept_what_is_asked_for(weights: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    critic = Rahf.of(RahfNetwork(RahfConfig(**TINY)), tiny_t5())
    torch.manual_seed(2)
    network, _ = of_critic(critic, critic.config, weights)
    for name, value in network.state_dict().items():
        is_constant = value.numel() > 0 and bool((value == value.flatten()[0]).all())
        is_head = name.startswith(("score_heads.", "heatmap_heads."))
        kept = weights == "all" or (weights == "towers" and not is_head)
        assert is_constant or torch.equal(value, critic.network.state_dict()[name]) == kept, name


def test_all_weights_cannot_be_kept_in_another_form() -> None:
    critic = Rahf.of(RahfNetwork(RahfConfig(**TINY)), tiny_t5())
    with pytest.raises(ValueError, match="keep the weights of the towers, or the form"):
        of_critic(critic, RahfConfig(**TINY, prompted=True), "all")
    network, _ = of_critic(critic, RahfConfig(**TINY, prompted=True), "towers")
    assert torch.equal(network.t5.shared.weight, critic.network.t5.shared.weight)
