"""The ResNet critic is a ResNet-50 with other norms; batches, sizes, precisions and files change nothing it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from rewards.base import Critique
from rewards.rahf.network import HEATMAPS
from rewards.resnet import MEAN, STD, ResnetConfig, ResnetCritic, ResnetNetwork
from tests.rewards import golden
from tests.rewards.tiny_resnet import TINY, save_tiny_resnet

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "two blue, squares", "a red circle")
SIZES = ((40, 48), (32, 32), (64, 37))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network."""
    folder = tmp_path_factory.mktemp("tiny") / "resnet"
    save_tiny_resnet(folder)
    return folder


def _images(sizes: tuple[tuple[int, int], ...] = SIZES, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.3 + 0.4 * torch.rand(3, *size, generator=generator, dtype=dtype) for size in sizes]


def _close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_at_full_size_the_backbone_has_the_parameters_of_resnet_50() -> None:
    with torch.device("meta"):
        network, published = ResnetNetwork(ResnetConfig()), ResNetModel(ResNetConfig())
        features = network.see(torch.zeros(1, 3, 512, 512))
        maps, scores = network.draw(features), network.score(features)
    shapes = {name: parameter.shape for name, parameter in network.backbone.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in published.named_parameters()}
    assert sum(shape.numel() for shape in shapes.values()) == 23_508_032
    assert (features.shape, maps.shape, scores.shape) == ((1, 2048, 16, 16), (1, 2, 512, 512), (1, 4))


def test_there_is_nothing_to_restore_but_parameters() -> None:
    network = ResnetNetwork(ResnetConfig(**TINY))
    assert not list(network.buffers())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_without_its_norms_the_backbone_is_that_of_transformers() -> None:
    """The layers are all in place: with no norms at all both give the same features."""
    ours = ResnetNetwork(ResnetConfig(**TINY)).backbone
    theirs = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=(16, 32), depths=(1, 2)))
    for network in (ours, theirs):
        for parent in list(network.modules()):
            if hasattr(parent, "normalization"):
                parent.normalization = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.stack(_images(((32, 32),) * 2, torch.float32))
    assert torch.equal(ours(pixels).last_hidden_state, theirs(pixels).last_hidden_state)


def test_scores_are_the_sigmoid_of_a_dense_layer_on_the_averaged_features(tiny: Path) -> None:
    network = ResnetCritic(tiny, CPU, torch.float64).network
    features = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    averaged = torch.stack([torch.stack([channel.mean() for channel in one]) for one in features])
    _close(network.score(features), 1 / (1 + (-(averaged @ network.dense.weight.T + network.dense.bias)).exp()))


@pytest.mark.parametrize("training", [False, True])
def test_neither_scores_nor_maps_depend_on_the_batch(tiny: Path, training: bool) -> None:
    critic, images = ResnetCritic(tiny, CPU, torch.float64), _images()
    critic.network.train(training)
    together = critic.critique(images, PROMPTS)
    alone = [critic.critique([image], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)]
    _close(together.scores, torch.cat([one.scores for one in alone]))
    for name in HEATMAPS:
        for index, one in enumerate(alone):
            _close(together.heatmaps[name][index], one.heatmaps[name][0])


def test_pixels_are_squashed_as_pil_does_and_normalised(tiny: Path) -> None:
    image = golden.image(0)
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    small = torch.tensor(list(picture.resize((32, 32), Image.Resampling.BILINEAR).tobytes())).view(32, 32, 3) / 255
    expected = (small - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(ResnetCritic(tiny, CPU).preprocess(image), expected.permute(2, 0, 1))


def test_a_critique_has_the_promised_shapes(tiny: Path) -> None:
    critic = ResnetCritic(tiny, CPU, torch.float64)
    _check_shapes(critic.critique(images := _images(), PROMPTS), images)
    same = _images(((40, 48),) * 3)
    critique = critic.critique(torch.stack(same), PROMPTS)
    _check_shapes(critique, same)
    assert all(isinstance(maps, Tensor) for maps in critique.heatmaps.values())
    _close(critique.scores, critic(same, PROMPTS))
    assert critique.words == [["a", "red", "circle"], ["two", "blue", "squares"], ["a", "red", "circle"]]
    assert critique.misaligned == [[False] * 3] * 3


def _check_shapes(critique: Critique, images: list[Tensor]) -> None:
    assert critique.scores.shape == (3, 4)
    assert tuple(critique.heatmaps) == HEATMAPS
    for maps in critique.heatmaps.values():
        assert [one.shape for one in maps] == [image.shape[1:] for image in images]
        assert all(0 <= one.min() < one.max() <= 1 for one in maps)


def test_the_two_maps_are_those_of_their_heads(tiny: Path) -> None:
    critic, (image,) = ResnetCritic(tiny, CPU, torch.float64), _images(((32, 32),))
    critique = critic.critique([image], PROMPTS[:1])
    features = critic.network.see(critic.preprocess(image)[None])
    for name in HEATMAPS:
        _close(critique.heatmaps[name], critic.network.heatmap_heads[name](features))


def test_gradients_flow_through_heatmaps(tiny: Path) -> None:
    leaves = [image.requires_grad_() for image in _images()]
    for maps in ResnetCritic(tiny, CPU, torch.float64).critique(leaves, PROMPTS).heatmaps.values():
        gradients = torch.autograd.grad(torch.stack([one.mean() for one in maps]).sum(), leaves, retain_graph=True)
        assert all(gradient.any() for gradient in gradients)


def test_half_precision_maps_are_promoted(tiny: Path) -> None:
    images = _images(dtype=torch.float32)
    expected = ResnetCritic(tiny, CPU).critique(images, PROMPTS).heatmaps
    for name, maps in ResnetCritic(tiny, CPU, torch.bfloat16).critique(images, PROMPTS).heatmaps.items():
        for one, other in zip(maps, expected[name], strict=True):
            assert one.dtype == torch.float32
            assert (one - other).abs().mean() < 0.05


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    network, images = save_tiny_resnet(tmp_path / "resnet"), _images(dtype=torch.float32)
    loaded = ResnetCritic(tmp_path / "resnet", CPU)
    assert loaded.network.config == network.config
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert torch.equal(loaded(images, PROMPTS), ResnetCritic.of(network)(images, PROMPTS))


def test_a_folder_of_another_network_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_tiny_resnet(tmp_path)
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depths": [1, 1]}))
    with pytest.raises(ValueError, match="does not hold the weights that config.json beside it describes"):
        ResnetCritic(tmp_path, CPU)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        ResnetCritic(tmp_path / "nothing", CPU)


@pytest.mark.parametrize("wrong", [{"image_size": 36}, {"heatmap_widths": (16, 16, 16, 12)}])
def test_maps_of_another_size_than_the_image_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Give a multiple of 8 and 3 doublings behind the first two widths"):
        ResnetConfig(**TINY | wrong)
