"""MPS gives its authors' numbers, and its mask is what they describe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.mps import MPS, encode_texts, image_tokens, relevance
from rewards.mps_fusion import Fusion, SelfAttention, cast
from tests.rewards import golden
from tests.rewards.clip_rewards import CPU, golden_reward
from tests.rewards.test_parity_clip import assert_gradient, official_pixels

TAUS = {"tau_0.3_infer_one_sample": 0.3, "tau_0.01_readme_forward": 0.01}


def _reward(folder: Path, gains: Sequence[Any] | None = None, **options: Any) -> MPS:
    reward = golden_reward("mps", folder, gains, **options)
    assert isinstance(reward, MPS)
    return reward


@pytest.fixture(scope="module")
def mps(tmp_path_factory: pytest.TempPathFactory) -> MPS:
    """The golden network with the threshold of the authors' evaluation."""
    return _reward(tmp_path_factory.mktemp("mps"))


def _assert_golden(reward: MPS, rows: Sequence[dict[str, Any]], pixels: Tensor, tolerance: float = 2e-4) -> None:
    """All rows in one batch of image and prompt, each with all conditions."""
    zero = "0" if "image0" in rows[0] else ""  # the authors' example has two images in a row
    wanted = {
        (row[f"image{zero}"], row["prompt"], row.get("condition", "overall")): row[f"score{zero}"] for row in rows
    }
    pairs = sorted({(image, prompt) for image, prompt, _ in wanted})
    prompts = [golden.prompts()[prompt] for _, prompt in pairs]
    scores = reward.score_pixels(pixels[[image for image, _ in pairs]], prompts)
    for (image, prompt, condition), score in wanted.items():
        found = scores[pairs.index((image, prompt)), reward.dimensions.index(condition)].item()
        assert abs(found - score) < tolerance, (image, prompt, condition)


@pytest.mark.parametrize("run", TAUS)
def test_scores_on_the_official_pixels(run: str, tmp_path: Path) -> None:
    rows = golden.run("mps_small")["results"][run]
    assert len(rows) == 256
    _assert_golden(_reward(tmp_path, tau=TAUS[run]), rows, official_pixels("mps"))


@pytest.mark.parametrize("run", TAUS)
def test_scores_that_see_a_wrong_epsilon(run: str, tmp_path: Path) -> None:
    content = golden.run("mps_small_eps")
    _assert_golden(_reward(tmp_path, content["gains"], tau=TAUS[run]), content["results"][run], official_pixels("mps"))


def test_scores_through_our_preprocessing(mps: MPS) -> None:
    rows = golden.run("mps_small")["results"]["tau_0.3_infer_one_sample"]
    deviation = torch.tensor([row["score"] for row in rows]).std().item()
    pixels = torch.stack([mps.preprocess(golden.image(index)) for index in range(8)])
    _assert_golden(mps, rows, pixels, tolerance=5e-3 * deviation)


def test_half_precision_is_the_authors(tmp_path: Path) -> None:
    rows = golden.run("mps_small")["fp16_model_cpu"]["pairs"]
    _assert_golden(_reward(tmp_path, dtype=torch.float16), rows, official_pixels("mps").half(), tolerance=0.1)


def test_the_gradient(tmp_path: Path) -> None:
    expected = golden.read("golden.json")["pixel_gradients"]["mps"]
    assert_gradient(_reward(tmp_path, tau=0.01), expected)


def test_features_and_relevance_are_the_authors(mps: MPS) -> None:
    run = golden.read("golden_debug.json")["mps_small"]
    model, prompts = mps.network.model, golden.prompts()
    texts = encode_texts(model, mps.network.tokenize(prompts))
    images = image_tokens(model, official_pixels("mps"))
    for index in range(8):
        golden.assert_sampled(texts.tokens[index, None], run["debug"][f"prompt{index}"]["tokens"], atol=2e-5)
        golden.assert_sampled(images[index, None], run["debug"][f"image{index}"]["tokens"], atol=2e-4)
    conditions = encode_texts(model, mps.network.tokenize(list(golden.run("mps_small")["conditions"].values())))
    found = relevance(texts.tokens, conditions.tokens)
    for name, row in run["relevance_diagnostic"].items():
        dimension, _, prompt = name.partition("|prompt")
        ours = found[int(prompt), mps.dimensions.index(dimension)]
        assert (ours > 0.3).sum() == row["kept_0.3"]
        torch.testing.assert_close(ours[:20], torch.tensor(row["r_first20"]), atol=1e-5, rtol=0)


def test_each_tower_runs_once_for_all_dimensions(mps: MPS, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[str, int]] = []
    for tower in ("token_embedding", "visual.conv1"):
        module = mps.network.model.get_submodule(tower)
        monkeypatch.setattr(
            module,
            "forward",
            lambda batch, tower=tower, forward=module.forward: batches.append((tower, len(batch))) or forward(batch),
        )
    scores = mps([golden.image(0)] * 3, ["a cat", "a dog", "a cat"])
    assert scores.shape == (3, 4)
    assert sorted(batches) == [("token_embedding", 2 + 4), ("visual.conv1", 3)]


def test_your_own_conditions_are_dimensions(tmp_path: Path) -> None:
    words = {"hands": "hands, fingers.", "overall": golden.run("mps_small")["conditions"]["overall"]}
    reward = _reward(tmp_path, conditions=words)
    images, prompts = [golden.image(2)], [golden.prompts()[2]]
    hands, overall = reward(images, prompts)[0]
    assert reward.dimensions == ("hands", "overall")
    torch.testing.assert_close(overall, MPS(tmp_path, CPU)(images, prompts)[0, 0])
    assert (hands - overall).abs() > 0.01


@pytest.mark.parametrize("options", [{"conditions": {}}, {"tau": 1.0}, {"tau": float("nan")}])
def test_a_mask_that_hides_everything_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one or more, and a tau below 1"):
        _reward(tmp_path, **options)


def test_relevance_is_at_most_one_in_each_prompt() -> None:
    prompts = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    found = relevance(
        prompts * torch.tensor([1.0, 9.0, 0.1])[:, None, None],
        torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)),
    )
    assert found.shape == (3, 2, 5)
    torch.testing.assert_close(found.amax(-1), torch.ones(3, 2))


def test_conditions_together_give_what_each_gives_alone() -> None:
    torch.manual_seed(0)
    fusion = Fusion(32, 3, 2).double()
    image, prompt = torch.randn(2, 9, 32).double(), torch.randn(2, 6, 32).double()
    keep = torch.rand(2, 4, 6) > 0.4
    keep[..., 0] = True
    together = fusion(image, prompt, keep)
    for index in range(4):
        torch.testing.assert_close(together[:, [index]], fusion(image, prompt, keep[:, [index]]))


def test_hidden_tokens_are_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    fusion = Fusion(32, layers=2, heads=2)
    image, prompt = torch.randn(1, 9, 32, generator=generator), torch.randn(1, 6, 32, generator=generator)
    keep = torch.tensor([[True, True, False, True, False, True]])
    seen = fusion(image, prompt, keep[:, None])
    assert torch.equal(seen, fusion(image, prompt + 5 * ~keep[..., None], keep[:, None]))
    assert not torch.allclose(seen, fusion(image, prompt + keep[..., None], keep[:, None]))


def test_the_published_size() -> None:
    with torch.device("meta"):
        fusion = Fusion(1024, layers=4, heads=16)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 118_497_280


def test_rotary_angles_stay_precise_in_half_precision() -> None:
    fusion = cast(Fusion(32, layers=1, heads=2), CPU, torch.bfloat16)
    block = fusion.to_image[0]
    assert isinstance(block, SelfAttention)
    assert (block.proj.weight.dtype, block.inv_freq.dtype) == (torch.bfloat16, torch.float32)


def test_a_folder_without_a_fusion_is_refused(mps: MPS, tmp_path: Path) -> None:
    _reward(tmp_path)
    (tmp_path / "mps_fusion.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold mps_fusion.safetensors and, in its open_clip_config.json, the"):
        MPS(tmp_path, CPU)
