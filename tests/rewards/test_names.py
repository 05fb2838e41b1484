"""What a name refers to: cards, classes, folders, repositories of the Hub; and the file names made of names."""

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from rewards.clip import ClipScore
from rewards.combine import Dimension, Weighted
from rewards.hps import HPS
from rewards.load import load_reward, load_rewards
from rewards.names import find, find_cards, group_specs, slug, split_words
from tests.rewards.folders import save_folder, save_in_hub_cache

CPU = torch.device("cpu")
IMAGE, PROMPT = torch.full((1, 3, 32, 32), 0.5), ["a red circle"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, and a cache of the Hub that nobody else uses."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_is_a_reward_by_its_path(here: Path) -> None:
    save_folder(here / "runs/mine")
    reward = load_reward("runs/mine", CPU)
    assert isinstance(reward, HPS)
    for spec in ("./runs/mine", str(here / "runs/mine"), "runs/mine/"):
        assert torch.equal(load_reward(spec, CPU)(IMAGE, PROMPT), reward(IMAGE, PROMPT))
    save_folder(here / "mine")
    assert isinstance(load_reward("mine", CPU), HPS), "a folder of the current one needs no slash"


def test_a_dimension_of_a_folder_and_the_whole_name_of_a_folder_first(here: Path) -> None:
    save_folder(here / "runs/mine")
    assert isinstance(load_reward("runs/mine.overall", CPU), Dimension)
    with pytest.raises(ValueError, match=r"runs/mine\.beauty: There is no dimension 'beauty'; choose one of overall"):
        load_reward("runs/mine.beauty", CPU)
    save_folder(here / "runs/mine.overall", reward="rewards.clip:ClipScore")
    assert isinstance(load_reward("runs/mine.overall", CPU), ClipScore)
    assert isinstance(load_reward("runs/mine.overall.overall", CPU), Dimension)


def test_folders_take_weights_and_may_have_spaces_and_equals_signs(here: Path) -> None:
    save_folder(here / "my runs/lr=1e-4")
    save_folder(here / "runs/mine", seed=1)
    one, two = load_reward("my runs/lr=1e-4", CPU), load_reward("runs/mine", CPU)
    assert isinstance(one, HPS)
    assert isinstance(load_reward("my runs/lr=1e-4.overall", CPU), Dimension)
    both = load_reward("runs/mine=2 sandbox-hps=-1", CPU)
    assert isinstance(both, Weighted) and [weight for _, weight in both.parts] == [2.0, -1.0]
    torch.testing.assert_close(load_reward("runs/mine=2", CPU)(IMAGE, PROMPT), 2 * two(IMAGE, PROMPT))
    assert group_specs(["my runs/lr=1e-4", "runs/mine"]) == ["my runs/lr=1e-4", "runs/mine"]
    assert list(load_rewards(["my runs/lr=1e-4", "runs/mine.overall"], CPU)) == ["my runs/lr=1e-4", "runs/mine.overall"]
    assert split_words("my runs/lr=1e-4") == ["my runs/lr=1e-4"]


def test_a_card_comes_before_a_folder_of_the_same_name(here: Path) -> None:
    save_folder(here / "sandbox-hps")
    assert find("sandbox-hps").card == find_cards("sandbox-hps")[0][1]
    assert find_cards("sandbox-hps")[0][1].licence == "Apache-2.0"
    assert find_cards("./sandbox-hps")[0][1].licence == "CC0"
    assert (slug("sandbox-hps"), slug("sandbox-hps.overall")) == ("sandbox-hps", "sandbox-hps.overall")


def test_the_licence_of_a_folder_is_shown_before_use(here: Path) -> None:
    save_folder(here / "runs/mine", licence="CC BY-NC 4.0")
    shown = [(name, card.licence) for name, card in find_cards("runs/mine.overall=1 sandbox-hps=2 own:Class=3")]
    assert shown == [("runs/mine", "CC BY-NC 4.0"), ("sandbox-hps", "Apache-2.0")]


def test_the_weights_of_a_folder_are_verified(here: Path) -> None:
    weights = save_folder(here / "mine") / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine/open_clip_model.safetensors is not the file .* \(its SHA-256 differs"):
        load_reward("./mine", CPU)
    weights.unlink()
    with pytest.raises(ValueError, match=r"which ./mine needs, does not exist"):
        load_reward("./mine", CPU)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": "rewards.no_such_file:HPS"}, "needs rewards.no_such_file:HPS, which this version does not have"),
        ({"reward": "rewards.hps:Gone"}, "needs rewards.hps:Gone, which this version does not have"),
        ({"reward": "rewards.clip:load_clip"}, "needs rewards.clip:load_clip, which is not a reward"),
        ({"reward": "rewards.clip:ClipNetwork"}, "which is not a reward"),
        ({"args": {"beauty": 3}}, "gives rewards.hps:HPS arguments that it does not take: .*beauty"),
        ({"args": {"device": "cpu"}}, "arguments that it does not take"),
    ],
)
def test_a_folder_of_another_version_is_refused(changed: dict[str, Any], message: str, here: Path) -> None:
    save_folder(here / "mine", **changed)
    with pytest.raises(ValueError, match=message):
        load_reward("./mine", CPU)


def test_foreign_code_of_a_folder_is_never_run(here: Path) -> None:
    (here / "evil.py").write_text("raise SystemExit('it ran')")
    (here / "rewards").mkdir()
    (here / "rewards/evil.py").write_text("raise SystemExit('it ran')")
    for module in ("evil", "rewards.evil"):
        save_folder(here / module.replace(".", "_"), reward=f"{module}:Evil")
        with pytest.raises(ValueError, match="only a class of the package|does not have"):
            load_reward(f"./{module.replace('.', '_')}", CPU)


@pytest.mark.parametrize("spec", ["hf://somebody/hps-v2.1", "somebody/hps-v2.1"])
def test_a_repository_of_the_hub_is_a_reward(spec: str, tmp_path: Path) -> None:
    save_in_hub_cache(tmp_path / "hub", "somebody/hps-v2.1")
    assert isinstance(load_reward(spec, CPU), HPS)
    chosen = load_reward(f"{spec}.overall", CPU)
    assert isinstance(chosen, Dimension) and isinstance(chosen.reward, HPS)
    assert [(name, card.licence) for name, card in find_cards(f"{spec}.overall=2")] == [(spec, "CC0")]


def test_what_is_neither_here_nor_in_the_cache_is_a_line(here: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody/nothing is neither a folder here nor a repository in the cache"):
        load_reward("nobody/nothing", CPU)
    with pytest.raises(ValueError, match="nobody/hps is neither"):
        load_reward("hf://nobody/hps.overall", CPU)
    (here / "runs").mkdir()
    with pytest.raises(ValueError, match=r"There is no folder runs/missing\. Give one with align_reward.json"):
        load_reward("runs/missing", CPU)
    with pytest.raises(ValueError, match=r"There is no folder /no/such/place"):
        load_reward("/no/such/place", CPU)
    with pytest.raises(ValueError, match="runs has no align_reward.json"):
        load_reward("runs", CPU)


def test_a_repository_without_a_card_is_refused(tmp_path: Path) -> None:
    (save_in_hub_cache(tmp_path / "hub", "somebody/else") / "align_reward.json").unlink()
    with pytest.raises(ValueError, match="has no align_reward.json"):
        load_reward("somebody/else", CPU)


def test_slugs_differ_where_names_do(here: Path) -> None:
    assert slug("sandbox-hps") == "sandbox-hps"
    assert slug("sandbox.gold:Gold.alignment") == "sandbox.gold~Gold.alignment"
    assert slug("a=1  b=-0.5") == "a@1+b@-0.5"
    for folder in ("runs/mine", "runs/other/mine", "my runs/mine", "here/a=b"):
        save_folder(here / folder)
    specs = ["runs/mine", "runs/other/mine", "my runs/mine", "here/a=b", "runs/mine.overall", "runs/mine=2", "a:b"]
    specs += ["a-b", "hf://owner/mine", "owner/mine.overall", "runs/mine=1 sandbox-hps=1"]
    slugs = [slug(spec) for spec in specs]
    assert len(set(slugs)) == len(specs)
    assert set("".join(slugs)) <= {*string.ascii_letters, *string.digits, *"._-~@+"}
    assert all(Path(one).name == one and not one.startswith(".") for one in slugs)
    assert slugs[0].startswith("mine-")


def test_one_folder_has_one_slug_until_its_weights_change(here: Path) -> None:
    save_folder(here / "runs/mine")
    assert slug("runs/mine") == slug("./runs/mine/") == slug(str(here / "runs/mine"))
    assert slug("owner/mine") == slug("hf://owner/mine")
    before = slug("runs/mine")
    (here / "runs/mine").rename(here / "away")
    save_folder(here / "runs/mine", seed=1)
    assert slug("runs/mine") != before
