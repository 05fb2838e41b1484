"""`align doctor`: without a network; with weights that are here; from a published file to the verdict."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from open_clip import CLIP
from PIL import Image

from recipes import cli, doctor
from recipes.doctor_check import judge
from rewards.cards import Card, Check, Source, load_cards
from rewards.hub import sha256
from rewards.load import load_card, load_reward
from tests.rewards.folders import save_folder

CPU = torch.device("cpu")
PUBLISHED = [name for name, card in load_cards().items() if card.checkpoint]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights, no cache of the Hub, and (as in all tests) no network."""
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def picture(tmp_path: Path) -> Check:
    """A picture that is published at an address of this machine."""
    path = tmp_path / "a picture.png"
    Image.new("RGBA", (48, 40), (200, 30, 30, 255)).save(path)
    return Check(path.as_uri(), sha256(path), "a red square")


def use(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> None:
    """Let these cards be all there are."""
    monkeypatch.setattr(doctor, "load_cards", lambda: {card.name: card for card in cards})


def tiny_card(folder: Path, checks: Sequence[Check], name: str = "tiny", **changed: object) -> Card:
    """A reward whose weights are in a folder."""
    card = Card(name, "rewards.hps:HPS", ("overall",), "CC0", "none", weights=str(folder), range=(-1.0, 1.0))
    return replace(card, check=tuple(checks), **changed)


def test_without_a_network_nothing_passes_and_nothing_is_written(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: Nothing could be checked; the lines above say what is missing.\n"
    verdicts = [line.split(maxsplit=2)[:2] for line in shown.out.splitlines() if " SKIPPED " in line]
    assert verdicts == [[name, "SKIPPED"] for name in PUBLISHED]
    assert shown.out.splitlines()[-1] == f"0 PASS, 0 FAIL, {len(PUBLISHED)} SKIPPED"
    assert "mps           SKIPPED  get MPS_overall_checkpoint.pth from https://github.com/Kwai-Kolors/MPS" in shown.out
    assert "rahf-port: fetches rahf_model.pt (size unknown)" in shown.out and "CC BY-NC 4.0" in shown.out
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_after_one_silence_the_network_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def obtain(card: Card, offline: bool) -> None:
        asked.append((card.name, offline))
        raise doctor.Unreachable("by hand") if card.name == "hps-v1" else doctor.NoNetwork("silence")

    monkeypatch.setattr(doctor, "_obtain", obtain)
    assert cli.main(["doctor", "hps-v1", "mps", "pickscore"]) == 1
    assert asked == [("hps-v1", False), ("mps", False), ("pickscore", True)]


def test_a_dry_run_only_tells(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "hps-v2.1", "aesthetic", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hps-v2.1: fetches HPS_v2.1_compressed.pt (1.97 GB); arXiv 2306.09341; weights: Apache")
    assert "linearMSE.pth (3.7 MB), model.safetensors (1.71 GB)" in lines[1]
    assert len(lines) == 2 and not home.exists()


def test_only_published_rewards_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "sandbox-hps"]) == 1
    assert f"sandbox-hps is not a published reward. They are: {', '.join(PUBLISHED)}." in capsys.readouterr().err


def test_published_scores_pass_and_fail(
    tmp_path: Path, picture: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_folder(tmp_path / "weights")
    image = torch.tensor([200, 30, 30]).view(3, 1, 1).expand(3, 40, 48) / 255
    score = load_reward(str(folder), CPU)([image], [picture.prompt]).item()
    right = replace(picture, score=score + 0.0005, tolerance=0.001, source="a paper")
    wrong = replace(right, score=score + 0.0015)
    use(monkeypatch, tiny_card(folder, [right]), tiny_card(folder, [right, wrong], name="other"))
    assert cli.main(["doctor", "tiny", "--device", "cpu"]) == 0
    found = f"found {score:.4f}"
    assert f"PASS     published scores\n{' ' * 23}a picture.png: expected {right.score:.4f} within 0.001 (a paper)" in (
        shown := capsys.readouterr().out
    )
    assert found in shown and shown.endswith("1 PASS, 0 FAIL, 0 SKIPPED\n")
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    assert "other         FAIL     published scores" in shown.out
    assert f"expected {wrong.score:.4f} within 0.001 (a paper), {found}" in shown.out
    assert shown.err == "error: other failed. Please report the lines above.\n"


def test_without_a_published_score_it_says_so(
    tmp_path: Path, picture: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_folder(tmp_path / "weights")
    use(monkeypatch, tiny_card(folder, [picture]))
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    assert f"PASS     {doctor.NO_SCORE}" in capsys.readouterr().out


def test_damaged_weights_and_changed_pictures_fail(
    tmp_path: Path, picture: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_folder(tmp_path / "weights")
    use(monkeypatch, tiny_card(folder, [replace(picture, sha256="0" * 64)]))
    assert cli.main(["doctor"]) == 1
    assert "FAIL" in (shown := capsys.readouterr().out) and "is not the published a picture.png" in shown
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    use(monkeypatch, tiny_card(folder, [picture]))
    assert cli.main(["doctor"]) == 1
    assert "its SHA-256 differs" in capsys.readouterr().out


def test_a_missing_picture_skips(tmp_path: Path, picture: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, card := tiny_card(save_folder(tmp_path / "weights"), [picture]))
    (tmp_path / "a picture.png").unlink()
    finding = doctor.examine(card, "cpu")
    assert (finding.verdict, finding.network) == ("SKIPPED", False)


CARD = tiny_card(Path("nowhere"), [], dimensions=("overall", "alignment"), range=(0.0, 1.0))
CHECK = Check("https://example.org/1.webp", "0", "a sea", wrong="a cat")


@pytest.mark.parametrize(
    ("check", "own", "other", "holds", "text"),
    [
        (CHECK, [0.6, 0.2], [0.5, 0.3], True, "1.webp: expected more than 0.5000 of a wrong prompt, found 0.6000"),
        (CHECK, [0.5, 0.9], [0.5, 0.3], False, "found 0.5000"),
        (
            replace(CHECK, dimension="alignment"),
            [0.6, 0.2],
            [0.5, 0.3],
            False,
            "than 0.3000 of a wrong prompt, found 0.2",
        ),
        (replace(CHECK, dimension="alignment"), [0.1, 0.9], [0.5, 0.3], True, "found 0.9000"),
        (CHECK, [2.0, -1.0], [0.0, 0.0], True, "found 2.0000"),
        (CHECK, [2.1, 0.0], [0.0, 0.0], False, r"near the published 0 to 1, found [2.1, 0.0]"),
        (CHECK, [0.5, -1.1], [0.0, 0.0], False, "near the published 0 to 1"),
        (CHECK, [0.5, float("nan")], [0.0, 0.0], False, "scores must be finite"),
        (CHECK, [float("inf"), 0.5], [0.0, 0.0], False, "scores must be finite"),
        (replace(CHECK, wrong=""), [0.5, 0.5], None, True, "found 0.5000, near the published 0 to 1"),
        (replace(CHECK, score=0.5, tolerance=0.1, source="s"), [0.59, 0.0], None, True, "0.5000 within 0.1 (s)"),
        (replace(CHECK, score=0.5, tolerance=0.1, source="s"), [0.39, 0.0], None, False, "found 0.3900"),
        (replace(CHECK, score=0.5, tolerance=0.1, source="s"), [float("nan"), 0.0], None, False, "finite"),
    ],
)
def test_what_holds_and_what_does_not(
    check: Check, own: list[float], other: list[float] | None, holds: bool, text: str
) -> None:
    found, said = judge(check, CARD, own, other)
    assert found == holds
    assert text in said


def published_clip(path: Path) -> Source:
    """A shallow CLIP as its authors would publish it, in widths whose number of heads is known."""
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 1024, "patch_size": 14},
        "text_cfg": {"width": 768, "heads": 12, "layers": 1},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save({"state_dict": CLIP(**config).half().state_dict()}, path)
    return Source(path.name, url=path.as_uri(), sha256=sha256(path))


def test_from_the_published_file_to_the_verdict(
    tmp_path: Path, home: Path, picture: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published_clip(tmp_path / "HPS_small.pt")
    card = replace(load_cards()["hps-v2"], checkpoint=source, check=(picture,), range=(-1.0, 1.0))
    use(monkeypatch, card)
    assert cli.main(["doctor", "--device", "cpu"]) == 0, capsys.readouterr().out
    assert "hps-v2        PASS" in capsys.readouterr().out
    assert card.path == home / "rewards/hps-v2"
    assert json.loads((card.path / "align_reward.json").read_text())["reward"] == "rewards.hps_v2:HPSv2"
    assert load_card("hps-v2", card, card.path, CPU).dimensions == ("overall",)
    (tmp_path / "HPS_small.pt").unlink()
    assert cli.main(["doctor", "--device", "cpu"]) == 0, "a second run fetches nothing"


def test_a_file_that_cannot_be_converted_fails(
    tmp_path: Path, picture: Check, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    source = Source("broken.pt", url=(tmp_path / "broken.pt").as_uri())
    use(monkeypatch, card := replace(load_cards()["hps-v2"], checkpoint=source, check=(picture,)))
    assert cli.main(["doctor"]) == 1
    assert f"FAIL     converting {tmp_path / 'home/downloads/broken.pt'}: " in capsys.readouterr().out
    assert not card.path.exists()
