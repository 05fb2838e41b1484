"""CLIP folders against open_clip's own loader, tokenizer, transform and features."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.factory import load_checkpoint
from PIL import Image
from torch import Tensor

from rewards.clip import ClipScore, ImageConfig, load_clip
from rewards.hps import HPS
from tests.rewards.tiny_clip import MODEL, STATISTICS, save_tiny_clip

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two  BLUE squares &amp; a star", "", "long " * 30, "a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def _pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(32, 32), (64, 64), (40, 80), (41, 97), (33, 50)]  # no tall ones: Pillow 13 resizes them differently
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def _tensors(pictures: Sequence[Image.Image]) -> list[Tensor]:
    return [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures]


@pytest.mark.parametrize("make", [ClipScore, HPS])
def test_scores_are_open_clips_raw_cosines(make: type[ClipScore | HPS], folder: Path) -> None:
    model = open_clip.CLIP(**MODEL).eval()
    load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
    transform: Any = open_clip.image_transform(32, is_train=False, **STATISTICS)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    with torch.no_grad():
        pixels = torch.stack([transform(picture) for picture in _pictures()])
        images, texts, *_ = model(pixels, tokens)
    scores = make(folder, CPU)(_tensors(_pictures()), PROMPTS)
    torch.testing.assert_close(scores[:, 0], (images * texts).sum(1), atol=2e-6, rtol=0)
    assert scores.std() > 0.01  # so that the comparison can fail


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("index", range(5))
def test_preprocess_is_open_clips_transform(index: int, resize_mode: str) -> None:
    picture = _pictures()[index]
    transform: Any = open_clip.image_transform(32, is_train=False, resize_mode=resize_mode, **STATISTICS)
    ours = ImageConfig(32, resize_mode=resize_mode, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).apply(
        _tensors([picture])[0]
    )
    assert ours.shape == (3, 32, 32)
    assert torch.equal(ours, transform(picture))


def test_a_prompt_is_encoded_once_and_lands_where_it_belongs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_clip(folder, CPU)
    alone = torch.cat([network.embed_prompts([prompt]) for prompt in PROMPTS])
    encoded: list[int] = []
    encode = network.model.encode_text
    monkeypatch.setattr(network.model, "encode_text", lambda tokens: encoded.append(len(tokens)) or encode(tokens))
    torch.testing.assert_close(network.embed_prompts(PROMPTS), alone, atol=1e-6, rtol=0)
    assert encoded == [4]


def test_embeddings_have_unit_length_and_tell_images_apart(folder: Path) -> None:
    embeddings = ClipScore(folder, CPU).embed(_tensors(_pictures()))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    assert (embeddings[0] - embeddings[1]).norm() > 0.01


def test_a_network_is_frozen_until_its_trainer_thaws_it(folder: Path) -> None:
    network = load_clip(folder, CPU)
    assert not network.model.training
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    network.model.requires_grad_(True)
    (network.embed_images(_tensors(_pictures())) * network.embed_prompts(PROMPTS)).sum().backward()
    assert network.model.get_parameter("text_projection").grad is not None
    assert network.model.get_parameter("visual.conv1.weight").grad is not None


def test_published_layouts_load(tmp_path: Path) -> None:
    """ViT-L-14's configuration as open_clip has it, made small: QuickGELU, CLIP's own vocabulary."""
    config = open_clip.get_model_config("ViT-L-14")
    assert config is not None
    config["vision_cfg"] |= {"layers": 1, "width": 64, "image_size": 28}
    config["text_cfg"] |= {"layers": 1, "width": 24, "heads": 2}
    folder = save_tiny_clip(tmp_path / "large", **config, quick_gelu=True)
    network = load_clip(folder, CPU)
    tokens = network.tokenize(["a photo of a cat", "x " * 100])
    assert (tokens[:, 0].tolist(), tokens[1, -1].item(), tokens.shape) == ([49406] * 2, 49407, (2, 77))
    assert network.image == ImageConfig(28, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), resize_mode="shortest")
    assert type(network.model.get_submodule("visual.transformer.resblocks.0.mlp.gelu")).__name__ == "QuickGELU"


def _break_config(folder: Path, **changes: Any) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "has no open_clip_config.json"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "must be a JSON object with a `model_cfg`"),
        (
            lambda folder: (folder / "open_clip_config.json").write_text("{}"),
            "must be a JSON object with a `model_cfg`",
        ),
        (lambda folder: _break_config(folder, multimodal_cfg={}), "does not describe a plain open_clip CLIP"),
        (lambda folder: _break_config(folder, embed_dim=8), "does not hold the weights that"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "safetensors does not exist"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 100), "does not hold the weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "has no tokenizer"),
    ],
    ids=[
        "no config",
        "torn",
        "empty",
        "not a CLIP",
        "other size",
        "no weights",
        "damaged",
        "no tokenizer",
        "torn tokenizer",
    ],
)
def test_a_damaged_folder_is_an_error_that_says_what(damage: Any, message: str, tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_clip(folder, CPU)


def test_a_network_that_is_not_square_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip", vision_cfg=MODEL["vision_cfg"] | {"image_size": [32, 24]})
    with pytest.raises(ValueError, match="wants 32 x 24 pixels; only square inputs"):
        load_clip(folder, CPU)


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "clip")
    weights = folder / "open_clip_model.safetensors"
    torch.save({}, weights.with_name("open_clip_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="read from safetensors only"):
        load_clip(folder, CPU)


@pytest.mark.parametrize(("mode", "padding"), [("openai", 0), ("transformers", 49407)])
def test_the_vocabulary_is_read_as_the_folder_says(mode: str, padding: int, tmp_path: Path) -> None:
    text = {"context_length": 9, "width": 32, "heads": 2, "layers": 1, "tokenizer_mode": mode}
    network = load_clip(save_tiny_clip(tmp_path / "clip", text_cfg=text), CPU)
    assert network.tokenize(["a cat <|endoftext|>"]).tolist() == [[49406, 320, 2368, 49407, 49407, *[padding] * 4]]
    _break_config(tmp_path / "clip", text_cfg=text | {"tokenizer_mode": "clips"})
    with pytest.raises(ValueError, match="'clips' is unknown; use openai or transformers, or leave it out"):
        load_clip(tmp_path / "clip", CPU)


def test_an_unknown_resize_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'stretch' is unknown; use shortest, longest, longest-float or squash"):
        ImageConfig(8, resize_mode="stretch").apply(torch.rand(3, 9, 9))
