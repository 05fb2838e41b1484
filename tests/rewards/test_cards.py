"""The cards of the rewards that ship, and the card that a folder of weights carries."""

import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards import cards
from rewards.cards import FOLDER_CARD, Card, load_cards, read_folder_card

ROOT = Path(cards.__file__).parents[1]
PUBLISHED = {name: card for name, card in load_cards().items() if card.checkpoint}
ENTRY: dict[str, Any] = {
    "reward": "rewards.hps_v2:HPSv2",
    "args": {"antialias": True},
    "dimensions": ["overall"],
    "licence": "MIT",
    "paper": "arXiv 2306.09341",
    "sha256": {"open_clip_model.safetensors": "0" * 64},
    "converted_from": {"file": "a.pt"},
}


def write(folder: Path, **changed: Any) -> Path:
    """A folder with a card of its own; None leaves an entry out."""
    folder.mkdir()
    entry = {key: value for key, value in (ENTRY | changed).items() if value is not None}
    (folder / FOLDER_CARD).write_text(json.dumps(entry))
    return folder


@pytest.mark.parametrize("card", load_cards().values(), ids=lambda card: card.name)
def test_the_shipped_cards_say_what_their_classes_are(card: Card) -> None:
    assert pkgutil.resolve_name(card.reward).dimensions == card.dimensions
    assert all((card.licence, card.paper, card.scale, card.parameters))
    assert card.commercial in ("yes", "no", "unclear")


@pytest.mark.parametrize("card", PUBLISHED.values(), ids=lambda card: card.name)
def test_a_published_card_says_where_its_files_are_and_what_to_expect(card: Card) -> None:
    assert card.range and card.range[0] < card.range[1]
    assert card.accuracy
    assert "%" in card.accuracy or "correlation" in card.accuracy
    for source in card.sources.values():
        assert [bool(place) for place in (source.repository, source.url, source.page)].count(True) == 1
        assert bool(source.repository) == bool(re.fullmatch(r"[0-9a-f]{40}", source.revision))
        assert not source.sha256 or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
    assert card.checkpoint and card.checkpoint.file in card.source


@pytest.mark.parametrize("card", PUBLISHED.values(), ids=lambda card: card.name)
def test_a_check_pins_its_picture_and_names_the_source_of_its_score(card: Card) -> None:
    assert card.check
    for check in card.check:
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/\w+/\w+/[0-9a-f]{40}/\S+", check.image)
        assert re.fullmatch(r"[0-9a-f]{64}", check.sha256)
        assert check.prompt and check.prompt != check.wrong
        assert not check.dimension or check.dimension in card.dimensions
        assert (check.score is None) == (not check.source) == (check.tolerance == 0)


def test_the_published_scores_are_those_of_their_sources() -> None:
    # README of ImageReward, and a comment of tgxs002/HPSv2#27, read in November 2026.
    readme = [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
    assert [check.score for check in load_cards()["image-reward"].check] == [round(score, 4) for score in readme]
    assert [check.score for check in load_cards()["hps-v2"].check] == [0.2876]


def test_the_page_about_the_rewards_says_what_the_cards_say() -> None:
    text = (ROOT / "docs/rewards.md").read_text()
    table = text.partition("## The table")[2].partition("## Which")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `([\w.-]+)` \|" + r" (.+?) \|" * 6 + "$", table, re.M)}
    assert {name: (parameters, *rest) for name, (parameters, _, *rest) in rows.items()} == {
        name: (card.parameters, ranged(card), ", ".join(card.dimensions), card.commercial, card.accuracy)
        for name, card in PUBLISHED.items()
    }
    checks = dict(re.findall(r"^\| `(hps-v2|image-reward)` \| (.*) \|$", text.partition("## Checking")[2], re.M))
    for name, sentence in checks.items():
        numbers = [check.score for check in PUBLISHED[name].check] + [PUBLISHED[name].check[0].tolerance]
        assert all(f"{number:g}" in sentence for number in numbers)
    assert len(checks) == 2


def ranged(card: Card) -> str:
    """The range as the page writes it."""
    assert card.range
    return f"{card.range[0]:g} to {card.range[1]:g}"


def test_the_links_of_the_page_lead_somewhere() -> None:
    page = ROOT / "docs/rewards.md"
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        text = (page.parent / file if file else page).read_text()
        titles = [title.lower().replace(" ", "-") for title in re.findall("^#+ (.+)", text, re.M)]
        assert not anchor or anchor in titles, f"{link} leads nowhere"


def test_the_folder_card_of_the_page_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/rewards.md").read_text(), re.DOTALL)
    (tmp_path / FOLDER_CARD).write_text(example)
    assert read_folder_card(tmp_path).args == {"antialias": True}


def test_every_field_is_explained_at_the_head_of_the_file() -> None:
    text = (ROOT / "rewards/cards.yaml").read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    used = {key for entry in yaml.safe_load(text).values() for key in entry}
    assert [key for key in used if not re.search(rf"(^#   |; |, ){key}\b", head, re.M)] == []


def test_weights_are_looked_for_beside_the_package_and_then_at_the_users_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "__file__", str(tmp_path / "site/rewards/cards.py"))
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    card = Card("mine", "rewards.hps:HPS", ("overall",), "MIT", "a paper")
    assert card.path == tmp_path / "home/rewards/mine"
    (tmp_path / "site/rewards/published/mine").mkdir(parents=True)
    assert card.path == tmp_path / "site/rewards/published/mine"
    monkeypatch.setenv("ALIGN_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cards.home() == tmp_path / ".cache/align"
    monkeypatch.setenv("ALIGN_HOME", "relative")
    assert cards.home() == Path.cwd() / "relative"


def test_the_card_of_a_folder(tmp_path: Path) -> None:
    card = read_folder_card(write(tmp_path / "mine"))
    assert (card.reward, card.dimensions, card.args) == ("rewards.hps_v2:HPSv2", ("overall",), {"antialias": True})
    assert (card.name, card.path, card.commercial, card.source) == ("mine", tmp_path / "mine", "unclear", "")
    assert read_folder_card(write(tmp_path / "free", commercial="yes", args=None, sha256=None)).commercial == "yes"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": "os:system"}, "names 'os:system'; only a class of the package rewards"),
        ({"reward": "my_rewards.hps:HPS"}, "only a class of the package rewards"),
        ({"reward": "rewards:HPS"}, "only a class of the package rewards"),
        ({"reward": "rewards.hps:HPS.load"}, "only a class of the package rewards"),
        ({"reward": ["rewards.hps:HPS"]}, "reward must be a str, not"),
        ({"reward": None}, "reward must be a str, not None"),
        ({"licence": None}, "licence must be a str"),
        ({"paper": 3}, "paper must be a str"),
        ({"dimensions": 3}, "dimensions must be a list"),
        ({"dimensions": [3]}, "dimensions and sha256 must hold strings"),
        ({"args": [1]}, "args must be a dict"),
        ({"sha256": {"file": 3}}, "dimensions and sha256 must hold strings"),
        ({"sha256": {"../../secret": "0"}}, "describes '../../secret', which is not in its folder"),
        ({"sha256": {"/etc/hostname": "0"}}, "is not in its folder"),
    ],
)
def test_a_bad_card_of_a_folder_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_folder_card(write(tmp_path / "mine", **changed))


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", "\udcff"])
def test_a_card_of_a_folder_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / FOLDER_CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"align_reward.json is no card of a folder: .* Convert or train anew\."):
        read_folder_card(tmp_path)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no align_reward.json; give a folder that `align convert`"):
        read_folder_card(tmp_path)
