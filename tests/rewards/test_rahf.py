"""The port of RAHF gives its authors' numbers for a batch of one in any batch, and keeps the contracts."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewards.base import Critique
from rewards.convert.layouts import Parts
from rewards.convert.rahf import convert_rahf_port
from rewards.rahf.config import PAPER, PORT, RahfConfig
from rewards.rahf.critic import Rahf, read_tokenizer
from rewards.rahf.network import HEATMAPS, SCORES, TIED, Fused, RahfNetwork
from rewards.weights import CONFIG, WEIGHTS, write_network
from tests.rewards import golden
from tests.rewards.tokenizers_for_tests import golden_t5, tiny_t5
from tests.test_rewards import CHECKS, Case

CPU = torch.device("cpu")
SMALL = Parts(vision_heads=4)
TINY: dict[str, Any] = {
    "image_size": 32,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_hidden": 32,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "text_head_width": 8,
    "text_hidden": 32,
    "vocabulary": 64,
    "heatmap_widths": (8, 8, 8, 6, 6, 4),
    "score_widths": (16, 8, 4),
    "score_hidden": (12, 8),
    "max_written": 12,
}
PROMPTS = ("a red circle", "two blue squares", "a red circle")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Rahf:
    """The golden network with a head for each output, through our files."""
    return _small(tmp_path_factory.mktemp("small"), "rahf_small", max_written=1)


FORMS: dict[str, dict[str, Any]] = {
    "port": {},
    "port, prompted": {"prompted": True},
    "paper": {"heads": "paper", "reads_image": True},
    "paper, prompted": {"heads": "paper", "reads_image": True, "prompted": True},
    "paper, scores read the rest": {"heads": "paper", "reads_image": True, "scores_read_rest": True, "mark_token": 7},
}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Rahf:
    """The golden network with activations so small that every epsilon counts; what it writes varies."""
    return _small(tmp_path_factory.mktemp("fragile"), "rahf_small", golden.run("rahf_small_eps")["gains"])


@pytest.fixture(scope="module", params=FORMS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network for the contract."""
    folder = tmp_path_factory.mktemp("tiny")
    config = RahfConfig(**TINY, **FORMS[request.param])
    network = RahfNetwork(config)
    golden.randomise(network)
    save_rahf(folder, network)
    return folder


def save_rahf(folder: Path, network: RahfNetwork) -> None:
    """Write a network as users have it, with a tokenizer of letters."""
    state = {key: value for key, value in network.state_dict().items() if key not in TIED}
    write_network(folder, {WEIGHTS: state}, {CONFIG: asdict(network.config)})
    tiny_t5().save(str(folder / "tokenizer.json"))


def _small(folder: Path, layout: str, gains: list[Any] | None = None, **config: Any) -> Rahf:
    tensors, configs = convert_rahf_port(golden.checkpoint(layout, gains), SMALL)
    write_network(folder, tensors, {name: {**content, **config} for name, content in configs.items()})
    golden_t5().save(str(folder / "tokenizer.json"))
    return Rahf(folder, CPU)


def _check(reward: Rahf, pair: dict[str, Any]) -> None:
    """Scores, maps and the first word written are those of the authors' code for one image and prompt."""
    prompt, pixels = golden.prompts()[pair["prompt"]], reward.preprocess(golden.image(pair["image"]))
    # A picture of the network's own size is not resized, neither on the way in nor on the way out.
    critique = reward.critique([(pixels / 2 + 0.5).clamp(0, 1)], [prompt])
    expected = torch.tensor([pair["scores"][name] for name in SCORES])
    torch.testing.assert_close(critique.scores[0], expected, atol=1e-5, rtol=0)
    for name in HEATMAPS:
        golden.assert_sampled(torch.as_tensor(critique.heatmaps[name]), pair["heatmaps"][name], atol=2e-5)
    fused = _fuse(reward, pair)
    logits, _ = reward.network.next_token(fused, torch.zeros(1, 1, dtype=torch.long))
    golden.assert_sampled(logits[0], pair["first_step_logits"], atol=1e-4)
    target, _ = reward.tokenize([pair["target_text"]])
    output = reward.network.t5(encoder_outputs=(fused.memory,), attention_mask=fused.mask.long(), labels=target)
    torch.testing.assert_close(output.loss.item(), pair["seq_loss"], atol=1e-4, rtol=0)


def _check_writing(reward: Rahf, pair: dict[str, Any]) -> None:
    """All that is written is what the authors' code writes."""
    rows = reward.network.write(_fuse(reward, pair))
    assert [len(row) for row in rows] == [pair["generated_steps"]]
    assert [reward.tokenizer.decode(row, skip_special_tokens=True) for row in rows] == pair["output_seq"]


def _fuse(reward: Rahf, pair: dict[str, Any]) -> Fused:
    pixels = reward.preprocess(golden.image(pair["image"]))[None]
    return reward.network.fuse(reward.network.see(pixels), *reward.tokenize([golden.prompts()[pair["prompt"]]]))


def test_prompts_have_the_authors_tokens(small: Rahf) -> None:
    rows = [small.tokenize([prompt])[0][0].tolist() for prompt in golden.prompts()]
    assert rows == golden.run("rahf_small")["prompt_ids"]


@pytest.mark.weights
def test_the_published_tokenizer_gives_the_authors_tokens() -> None:
    tokenizer = read_tokenizer(
        Path(__file__).parents[2] / "rewards/published/rahf-port/tokenizer.json", PORT.vocabulary
    )
    assert [tokenizer.encode(prompt).ids for prompt in golden.prompts()] == golden.run("rahf_small")["prompt_ids"]


@pytest.mark.parametrize("index", range(8))
def test_pixels_are_the_authors(small: Rahf, index: int) -> None:
    sample = golden.read("golden_debug.json")["rahf_small"]["pixels"][f"image{index}"]
    golden.assert_sampled(small.preprocess(golden.image(index))[None], sample, atol=1e-6)


@pytest.mark.parametrize("index", range(22))
def test_all_outputs_are_the_authors(small: Rahf, index: int) -> None:
    _check(small, golden.run("rahf_small")["pairs"][index])


def test_a_network_that_is_told_what_to_predict_gives_the_authors_outputs(tmp_path: Path) -> None:
    reward = _small(tmp_path, "rahf_small_single", max_written=1)
    for pair in golden.run("rahf_small_single")["pairs"]:
        _check(reward, pair)


@torch.no_grad()
def test_every_epsilon_is_the_authors(fragile: Rahf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragile.network, "config", replace(fragile.config, max_written=1))
    for pair in golden.run("rahf_small_eps")["pairs"]:
        _check(fragile, pair)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "eps", "right"), [(nn.LayerNorm, 1e-6, 1e-12), (nn.RMSNorm, 1e-5, 1e-6)])
def test_another_epsilon_would_show(fragile: Rahf, kind: type[nn.Module], eps: float, right: float) -> None:
    pairs = golden.run("rahf_small_eps")["pairs"][:3]
    _set_epsilon(fragile.network, kind, eps)
    wrong = _error(fragile, pairs)
    _set_epsilon(fragile.network, kind, right)
    assert _error(fragile, pairs) < 1e-5 < 1e-3 < wrong


@pytest.mark.parametrize("index", [0, 1, 3, 5])
def test_what_is_written_is_the_authors(fragile: Rahf, index: int) -> None:
    _check_writing(fragile, golden.run("rahf_small_eps")["pairs"][index])


def _set_epsilon(network: nn.Module, kind: type[nn.Module], eps: float) -> None:
    for module in network.modules():
        if isinstance(module, kind):
            module.eps = eps  # pyright: ignore[reportArgumentType]


def _error(reward: Rahf, pairs: list[dict[str, Any]]) -> float:
    scores = reward([golden.image(p["image"]) for p in pairs], [golden.prompts()[p["prompt"]] for p in pairs])
    expected = torch.tensor([[pair["scores"][name] for name in SCORES] for pair in pairs])
    return (scores - expected).abs().max().item()


def test_a_batch_gives_what_each_gives_alone(small: Rahf) -> None:
    assert _error(small, golden.run("rahf_small")["pairs"]) < 1e-5


def test_the_authors_attend_to_padding(small: Rahf) -> None:
    """Our masked padding is a departure; without the mask their scores of a batch of two come out."""
    expected = golden.run("rahf_small")["batch2_padding_is_attended"]
    pixels = torch.stack([small.preprocess(golden.image(index)) for index in expected["images"]])
    ids, mask = small.tokenize([golden.prompts()[index] for index in expected["prompts"]])
    features = small.network.fuse(small.network.see(pixels), ids, torch.ones_like(mask)).features
    for name in SCORES:
        scores = small.network.score(features, name)
        torch.testing.assert_close(scores, torch.tensor(expected["scores"][name]), atol=1e-5, rtol=0)


def test_gradients_are_the_authors(small: Rahf) -> None:
    expected = golden.read("golden.json")["pixel_gradients"]["rahf"]
    pixels = golden.gradient_input(64).requires_grad_()
    tokens = small.tokenize([golden.prompts()[expected["prompt"]]])
    score = small.network.score(small.network.fuse(small.network.see(pixels), *tokens).features, "overall")
    (gradient,) = torch.autograd.grad(score.sum(), pixels)
    torch.testing.assert_close(score.item(), expected["score"], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient.norm().item(), expected["grad_l2"], atol=0, rtol=1e-4)
    golden.assert_sampled(gradient, expected["grad"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check: Callable[[Case, Path], None], tiny: Path) -> None:
    check(Case(lambda folder, dtype: Rahf(folder, CPU, dtype)), tiny)


def _images(sizes: tuple[tuple[int, int], ...] = ((40, 48), (32, 32), (64, 37))) -> list[Tensor]:
    return Case(lambda folder, dtype: Rahf(folder, CPU, dtype), sizes=sizes).images(torch.float64)


def _close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_a_critique_does_not_depend_on_its_batch(tiny: Path) -> None:
    critic, images = Rahf(tiny, CPU, torch.float64), _images()
    together = critic.critique(images, PROMPTS)
    alone = [critic.critique([image], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)]
    _close(together.scores, torch.cat([one.scores for one in alone]))
    for name in HEATMAPS:
        for index, one in enumerate(alone):
            _close(together.heatmaps[name][index], one.heatmaps[name][0])
    assert together.words == [one.words[0] for one in alone]
    assert together.misaligned == [one.misaligned[0] for one in alone]


def test_a_critique_of_many_heads_takes_one_pass(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critic, passes = Rahf(tiny, CPU), list[int]()
    fuse = critic.network.fuse
    monkeypatch.setattr(critic.network, "fuse", lambda *given: passes.append(1) or fuse(*given))
    critic.critique([image.float() for image in _images()], PROMPTS)
    assert len(passes) == (1 + len(SCORES) + len(HEATMAPS) if critic.config.prompted else 1)


def test_a_critique_has_the_promised_shapes(tiny: Path) -> None:
    critic, images = Rahf(tiny, CPU, torch.float64), _images()
    _check_shapes(critic.critique(images, PROMPTS), images)
    same = _images(((40, 48),) * 3)
    critique = critic.critique(same, PROMPTS)
    _check_shapes(critique, same)
    assert all(isinstance(maps, Tensor) for maps in critique.heatmaps.values())
    _close(critique.scores, critic(torch.stack(same), PROMPTS))
    assert critique.words == [["a", "red", "circle"], ["two", "blue", "squares"], ["a", "red", "circle"]]


def _check_shapes(critique: Critique, images: list[Tensor]) -> None:
    assert critique.scores.shape == (3, 4)
    assert tuple(critique.heatmaps) == HEATMAPS
    for maps in critique.heatmaps.values():
        assert [one.shape for one in maps] == [image.shape[1:] for image in images]
        assert all(0 <= one.min() < one.max() <= 1 for one in maps)
    assert [len(row) for row in critique.misaligned] == [len(row) for row in critique.words]


def test_gradients_flow_through_heatmaps(tiny: Path) -> None:
    critic, images = Rahf(tiny, CPU, torch.float64), _images()
    leaves = [image.requires_grad_() for image in images]
    for maps in critic.critique(leaves, PROMPTS).heatmaps.values():
        torch.stack([one.mean() for one in maps]).sum().backward(retain_graph=True)
        assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


def test_half_precision_maps_are_promoted(tiny: Path) -> None:
    images = [image.float() for image in _images()]
    expected = Rahf(tiny, CPU).critique(images, PROMPTS).heatmaps
    for name, maps in Rahf(tiny, CPU, torch.bfloat16).critique(images, PROMPTS).heatmaps.items():
        for one, other in zip(maps, expected[name], strict=True):
            assert one.dtype == torch.float32
            assert (one - other).abs().mean() < 0.05


def test_marks_are_read_from_what_is_written(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critic = Rahf(tiny, CPU)
    rows = [critic.tokenizer.encode(text).ids[:-1] for text in ("a red_0 circle", "two blue", "a_0 red circle_0")]
    monkeypatch.setattr(critic.network, "write", lambda fused: rows)
    critique = critic.critique([image.float() for image in _images()], PROMPTS)
    assert critique.misaligned == [[False, True, False], [False, False, False], [True, False, True]]


def test_a_table_of_tokens_that_is_not_shared_is_refused() -> None:
    state = golden.checkpoint("rahf_small")
    state["t5.lm_head.weight"] = state["t5.lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"t5\.lm_head\.weight must equal t5\.shared\.weight"):
        convert_rahf_port(state, SMALL)


def test_the_published_forms_have_the_published_sizes() -> None:
    with torch.device("meta"):
        port, paper = RahfNetwork(PORT), RahfNetwork(PAPER)
    sizes = [sum(p.numel() for p in head.parameters()) for head in (port.heatmap_heads, port.score_heads)]
    assert sizes == [2 * 32_196_865, 4 * 12_446_969]
    features = torch.zeros(1, 768, 32, 32, device="meta")
    assert paper.heatmap(features, "misalignment").shape == (1, 512, 512)
    assert paper.score(features, "overall").shape == (1,)


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="heads 'other' are unknown; use port or paper"):
        RahfNetwork(RahfConfig(**TINY, heads="other"))
