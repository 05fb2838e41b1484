"""From names to rewards."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards import names
from rewards.cards import Card, load_cards
from rewards.clip import ClipScore
from rewards.combine import Dimension, Weighted
from rewards.hps import HPS
from rewards.hub import sha256
from rewards.load import load_each, load_reward, load_rewards
from rewards.names import find_cards, group_specs
from tests.rewards.tiny_clip import save_tiny_clip

CPU = torch.device("cpu")

PLAIN = """
import torch
from rewards.base import Reward

class {name}(Reward):
    dimensions = ("first", "second")
    differentiable = False

    def preprocess(self, image):
        return image

    def __call__(self, images, prompts):
        return torch.arange(2.0).repeat(len(images), 1)
"""

WITH_DEVICE = (
    PLAIN
    + """
    def __init__(self, device):
        self.device = device
"""
)

MODULE = (
    PLAIN.replace("(Reward)", "(Reward, torch.nn.Module)")
    + """
    def __init__(self):
        torch.nn.Module.__init__(self)
        self.register_buffer("anchor", torch.zeros(1))
"""
)


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Card]:
    """Two cards, one with a dot in its name, with tiny weights."""
    folder = save_tiny_clip(tmp_path / "weights")
    digest = {"open_clip_model.safetensors": sha256(folder / "open_clip_model.safetensors")}
    clip = Card("clip-v2.1", "rewards.clip:ClipScore", ("overall",), "Apache-2.0", "a paper", sha256=digest)
    hps = Card("hps", "rewards.hps:HPS", ("overall",), "MIT", "another", weights=str(folder))
    cards = {"clip-v2.1": replace(clip, weights=str(folder)), "hps": hps}
    monkeypatch.setattr(names, "load_cards", lambda: cards)
    return cards


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_short_names_load_the_cards_class(cards: dict[str, Card]) -> None:
    assert isinstance(load_reward("clip-v2.1", CPU), ClipScore)
    assert isinstance(load_reward("hps", CPU), HPS)


def test_a_card_may_have_arguments(cards: dict[str, Card]) -> None:
    cards["hps"] = replace(cards["hps"], args={"dtype": torch.float64})
    assert load_reward("hps", CPU)(torch.rand(1, 3, 32, 32), [""]).dtype == torch.float64


def test_a_card_is_found_before_a_dimension_is_split_off(cards: dict[str, Card]) -> None:
    reward = load_reward("clip-v2.1.overall", CPU)
    assert isinstance(reward, Dimension)
    assert isinstance(reward.reward, ClipScore)
    with pytest.raises(ValueError, match=r"hps\.beauty: There is no dimension 'beauty'; choose one of overall"):
        load_reward("hps.beauty", CPU)


def test_weights_make_a_sum(cards: dict[str, Card]) -> None:
    reward = load_reward("clip-v2.1=2 hps=-0.5", CPU)
    assert isinstance(reward, Weighted)
    assert [(type(part), weight) for part, weight in reward.parts] == [(ClipScore, 2.0), (HPS, -0.5)]
    assert isinstance(both := load_reward("clip-v2.1 hps=0.5", CPU), Weighted)
    assert [weight for _, weight in both.parts] == [1.0, 0.5]
    image, prompt = torch.rand(1, 3, 32, 32), ["a red circle"]
    torch.testing.assert_close(reward(image, prompt), 1.5 * load_reward("hps", CPU)(image, prompt))
    with pytest.raises(ValueError, match="'hps=much' must be NAME=WEIGHT with a number"):
        load_reward("hps=much", CPU)


def test_several_names_are_several_rewards_unless_they_have_weights(cards: dict[str, Card]) -> None:
    assert list(load_rewards(["clip-v2.1", "hps"], CPU)) == ["clip-v2.1", "hps"]
    assert list(load_rewards(["clip-v2.1=1", "hps=0.5"], CPU)) == ["clip-v2.1=1 hps=0.5"]
    with pytest.raises(ValueError, match="'clip-v2' is unknown"):
        load_rewards(["hps", "clip-v2"], CPU)
    assert group_specs(["a=1 b=2", "c"]) == ["a=1 b=2", "c"]
    with pytest.raises(ValueError, match="a=1 has a weight and b has none"):
        group_specs(["a=1", "b"])
    with pytest.raises(ValueError, match="named twice in a b a"):
        group_specs(["a", "b", "a"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sandbox-hsp", "'sandbox-hsp' is unknown. Nearest names: sandbox-hps, sandbox-hps-2"),
        ("sandbox-hsp.overall", "Nearest names: sandbox-hps"),
        (
            "zebra",
            "Nearest names: aesthetic, .*sandbox-hps-2, sandbox-rahf. Your own class is named as my_file:MyReward",
        ),
        ("sandbox-hps=1 sandbox-hop=1", "'sandbox-hop' is unknown"),
        ("", "An empty reward name"),
        (" ", "An empty reward name"),
        ("a:b:c", "'a:b:c' is unknown"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(spec, CPU)


def test_licences_can_be_shown_before_use(cards: dict[str, Card]) -> None:
    assert [(name, card.licence) for name, card in find_cards("clip-v2.1.overall=1 hps=2 own:Class=3")] == [
        ("clip-v2.1", "Apache-2.0"),
        ("hps", "MIT"),
    ]


def test_weights_are_verified_before_load(cards: dict[str, Card]) -> None:
    weights = cards["clip-v2.1"].path / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"the card of clip-v2.1 describes \(its SHA-256 differs\)"):
        load_reward("clip-v2.1", CPU)
    weights.unlink()
    with pytest.raises(ValueError, match="which clip-v2.1 needs, does not exist"):
        load_reward("clip-v2.1", CPU)
    weights.parent.rename(weights.parent.with_name("elsewhere"))
    with pytest.raises(ValueError, match="weights of clip-v2.1 are not at"):
        load_reward("clip-v2.1", CPU)


def test_weights_that_do_not_come_with_the_repository_can_be_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {name: card for name, card in load_cards().items() if card.source}
    assert len(published) >= 8
    moved = {name: replace(card, weights=str(tmp_path / name)) for name, card in published.items()}
    monkeypatch.setattr(names, "load_cards", lambda: moved)
    for name in published:
        with pytest.raises(ValueError, match=f"{name} are not at .*/{name}. `align rewards show {name}` says how"):
            load_reward(name, CPU)


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1000).hexdigest()


def test_a_users_class_is_found_in_the_current_directory(here: Path) -> None:
    (here / "plain_reward.py").write_text(PLAIN.format(name="Plain"))
    reward = load_reward("plain_reward:Plain", CPU)
    assert reward(torch.rand(2, 3, 4, 4), ["", ""]).tolist() == [[0.0, 1.0]] * 2
    second = load_reward("plain_reward:Plain.second", CPU)
    assert second(torch.rand(1, 3, 4, 4), [""]).tolist() == [[1.0]]


def test_a_users_class_is_found_in_a_package_with_its_own_helpers(here: Path) -> None:
    (here / "zoo").mkdir()
    (here / "zoo/helper.py").write_text("NAME = 'Nested'")
    (here / "zoo/nested.py").write_text("from zoo.helper import NAME\n" + PLAIN.format(name="Nested"))
    assert type(load_reward("zoo.nested:Nested", CPU)).__name__ == "Nested"


def test_a_users_class_gets_the_device(here: Path) -> None:
    (here / "device_reward.py").write_text(WITH_DEVICE.format(name="WithDevice"))
    assert vars(load_reward("device_reward:WithDevice", torch.device("meta")))["device"] == torch.device("meta")
    (here / "module_reward.py").write_text(MODULE.format(name="Module"))
    reward = load_reward("module_reward:Module", torch.device("meta"))
    assert isinstance(reward, torch.nn.Module)
    assert reward.get_buffer("anchor").device == torch.device("meta")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("not_there:Reward", r"not_there cannot be imported .*Put not_there.py into the current directory"),
        ("broken_reward:Other", "broken_reward has no such name"),
        ("broken_reward:VALUE", "broken_reward has something else there"),
        ("broken_reward:Half", "broken_reward:Half must define __call__"),
        ("broken_reward:Bare", "broken_reward:Bare must have the attribute dimensions"),
        ("broken_reward:Needy", "broken_reward:Needy must be made without arguments .*: missing .*'path'"),
        ("torn_reward:Reward", r"torn_reward cannot be imported .*torn_reward.py, line 1\)"),
    ],
)
def test_what_is_not_a_reward_is_refused(spec: str, message: str, here: Path) -> None:
    bare = PLAIN.format(name="Bare").replace("dimensions", "names")
    half = PLAIN.format(name="Half").replace("__call__", "score")
    needy = WITH_DEVICE.format(name="Needy").replace("(self, device)", "(self, path, device)")
    (here / "broken_reward.py").write_text(f"VALUE = 1\n{bare}\n{half}\n{needy}")
    (here / "torn_reward.py").write_text("class Reward(")
    with pytest.raises(ValueError, match=message):
        load_reward(spec, CPU)


def test_a_reward_of_which_two_dimensions_are_asked_for_is_loaded_once() -> None:
    names = ["sandbox-rahf.plausibility", "sandbox-rahf.alignment", "sandbox-rahf.overall=0.5 sandbox-hps=1"]
    plausibility, alignment, mixed = load_each(names, torch.device("cpu")).values()
    assert isinstance(plausibility, Dimension) and isinstance(alignment, Dimension) and isinstance(mixed, Weighted)
    assert plausibility.reward is alignment.reward
    assert (plausibility.dimensions, alignment.dimensions) == (("plausibility",), ("alignment",))
    alone = load_reward(names[0], torch.device("cpu"))
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plausibility([image], ["a red circle"]), alone([image], ["a red circle"]))
