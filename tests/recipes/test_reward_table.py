"""`align rewards`: the table, the card of one reward, and the commands that get its weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cli
from recipes.configs.score import ScoreConfig
from recipes.configuration import parse_command
from rewards.cards import load_cards
from tests.rewards.folders import save_folder

CARDS = load_cards()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights but those that ship, and a current folder that is not the checkout."""
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What `align rewards` prints."""
    assert cli.main(["rewards", *argv]) == 0
    return capsys.readouterr().out


def test_help_names_the_two_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert "align rewards COMMAND" in text and " ls " in text and " show " in text


def test_ls_has_a_line_for_each_reward(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "home/rewards/hps-v2.1").mkdir(parents=True)
    head, *lines = shown(capsys, "ls").splitlines()
    rows = {line.split()[0]: re.split(r" {2,}", line) for line in lines}
    assert head.split()[:5] == ["name", "dimensions", "weights", "commercial", "range"]
    assert list(rows) == list(CARDS)
    assert rows["hps-v2.1"][:5] == ["hps-v2.1", "overall", "here", "yes", "0.14 to 0.35"]
    assert rows["rahf-port"][1:4] == ["plausibility,alignment,aesthetics,overall", "to get", "no"]
    assert rows["sandbox-hps"] == ["sandbox-hps", "overall", "here", "yes", "Apache-2.0"]
    starts = {line.find(CARDS[line.split()[0]].licence) for line in lines}
    assert len(starts) == 1, "the licences stand in one column"


@pytest.mark.parametrize("argv", [["ls"], ["show", "mps"]])
def test_it_is_answered_without_torch_and_without_the_hub(argv: list[str]) -> None:
    script = f"import sys; from recipes.cli import main; main(['rewards', *{argv}]); print(*sys.modules)"
    root = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "huggingface_hub", "diffusers"} & set(done.stdout.splitlines()[-1].split())


def test_show_tells_all_that_is_known(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, card = shown(capsys, "show", "hps-v2.1"), CARDS["hps-v2.1"]
    facts = dict(re.findall(r"^([\w-]+): +(.+)$", text, re.M))
    assert facts["licence"] == card.licence
    assert facts["accuracy"] == "HPD v2 test 84.1 % (README of github.com/tgxs002/HPSv2)"
    assert facts["weights"] == f"{elsewhere}/home/rewards/hps-v2.1 (not here yet)"
    assert "697403c78157020a1ae59d23f111aa58ced35b0a, 1.97 GB, SHA-256 c57a38fb" in facts["checkpoint"]
    assert "arguments" not in facts, "what is not known is left out"


def test_the_commands_that_get_the_weights_name_every_file(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, card in CARDS.items():
        text = shown(capsys, "show", name)
        assert ("To get the weights" in text) == bool(card.source)
        if not card.source:
            continue
        assert f"--as {name} --out {card.path}" in text
        assert all(source.file in text.partition("align convert")[0] for source in card.sources.values())
        assert [f" --{role} " in text for role in ("clip", "tokenizer")] == [bool(card.clip), bool(card.tokenizer)]
        assert (f"checked: align doctor {name}" in text) == (not (card.checkpoint and card.checkpoint.page))
        (elsewhere / "home/rewards" / name).mkdir(parents=True)
        assert "To get the weights" not in shown(capsys, "show", name)


def test_show_takes_a_folder(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(elsewhere / "runs/mine", args={"dtype": "float16"})
    text = shown(capsys, "show", "runs/mine")
    assert re.search(r"^licence: +CC0$", text, re.M) and re.search(r"^arguments: +dtype=float16$", text, re.M)
    assert f"{elsewhere}/runs/mine (here)" in text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["show", "hps-v3"], "Reward 'hps-v3' is unknown. Nearest names: hps-v2"),
        (["show", "mine:Mine"], "mine:Mine is a class of your own and has no card."),
        (["show", "./nothing"], "There is no folder ./nothing."),
        (["show"], "requires an argument"),
        (["list"], 'Unknown command "list"'),
    ],
)
def test_a_mistake_is_a_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rewards", *argv]) == 1
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_the_licence_of_a_folder_is_announced(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.reward_names import announce

    save_folder(elsewhere / "runs/mine", licence="CC BY-NC 4.0", paper="my thesis")
    command = parse_command(ScoreConfig, ["x", "--rewards", "runs/mine.overall=1", "sandbox-hps=1"], "align score")
    assert command is not None
    announce([" ".join(command.settings.rewards)])
    assert capsys.readouterr().out.splitlines() == [
        "runs/mine: my thesis; weights: CC BY-NC 4.0",
        "sandbox-hps: arXiv 2303.14420; weights: Apache-2.0",
    ]


def test_a_pickled_checkpoint_is_converted_with_leave(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rewards", "show", "mps"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("--allow-pickle")
