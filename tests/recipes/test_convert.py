"""`align convert` as it is typed: every published layout becomes a folder that scores as the authors' code does."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipes.cli import main
from rewards.cards import FOLDER_CARD, Source, load_cards
from rewards.load import load_reward, sha256
from tests.rewards import golden
from tests.rewards.tokenizers_for_tests import golden_bert, golden_t5

HEADS = {"vision_heads": "4", "text_heads": "2"}
ONE_HEAD = {"vision_heads": "1", "text_heads": "1"}


def _flat(state: dict[str, Tensor]) -> Any:
    return state


def _wrapped(state: dict[str, Tensor]) -> Any:
    return {"state_dict": state}


CASES = [
    ("hps-v1", "hpsv1_small", "hpsv1_small", _wrapped, ONE_HEAD),
    ("hps-v2.1", "hpsv2_small", "hpsv2_small", _wrapped, HEADS),
    ("pickscore", "pickscore_small", "pickscore_small", _flat, HEADS),
    ("mps", "mps_small", "mps_small", _flat, HEADS),
    ("aesthetic", "laion_small", "laion_head_small", _flat, ONE_HEAD),
    ("image-reward", "imagereward_small", "imagereward_small", _flat, {"vision_heads": "3", "text_heads": "2"}),
    ("rahf-port", "rahf_small", "rahf_small", _flat, {"vision_heads": "4"}),
]
TOLERANCES = {"mps": 2e-4, "pickscore": 1e-4, "rahf-port": 1e-5}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _prepare(name: str, layout: str, wrap: Callable[[dict[str, Tensor]], Any]) -> list[str]:
    """The published files, as they are called here; the further options that their conversion needs."""
    torch.save(wrap(golden.checkpoint(layout)), "published.pt")
    match name:
        case "aesthetic":
            torch.save(golden.checkpoint("openai_clip_l14_small"), "clip.pt")
            return ["--clip", "clip.pt"]
        case "image-reward" | "rahf-port":
            (golden_bert() if name == "image-reward" else golden_t5()).save("tokens.json")
            return ["--tokenizer", "tokens.json"]
        case _:
            return []


def _type(name: str, *options: str, checkpoint: str = "published.pt", **heads: str) -> int:
    given = [part for option, value in heads.items() for part in (f"--{option}", value)]
    return main(["convert", checkpoint, "--as", name, "--out", "made", *options, *given])


def _golden(name: str, run: str) -> tuple[list[Tensor], list[str], list[float], str]:
    """A few golden pairs (opaque pictures, preprocessed by us), and what they must score."""
    content = golden.run(run)
    rows = content["results"]["tau_0.3_infer_one_sample"] if name == "mps" else content["pairs"]
    rows = [row for row in rows if row["image"] in (0, 1, 7) and row.get("condition", "overall") == "overall"][:6]
    images = [golden.image(row["image"]) for row in rows]
    prompts = [golden.prompts()[row.get("prompt", 0)] for row in rows]
    dimension = ".overall" if name in ("mps", "rahf-port") else ""
    scores = [row["scores"]["overall"] if name == "rahf-port" else _score(row) for row in rows]
    return images, prompts, scores, dimension


def _score(row: dict[str, Any]) -> float:
    return next(row[key] for key in ("score", "antialias_off") if key in row)


@pytest.mark.parametrize(("name", "run", "layout", "wrap", "heads"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("place")
def test_a_converted_checkpoint_scores_as_its_authors_code(
    name: str,
    run: str,
    layout: str,
    wrap: Callable[[dict[str, Tensor]], Any],
    heads: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = _prepare(name, layout, wrap)
    code = _type(name, *options, **heads)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert load_cards()[name].licence in said.out
    assert "recognised: " in said.out
    card = json.loads(Path("made", FOLDER_CARD).read_text())
    assert card["reward"] == load_cards()[name].reward
    assert card["converted_from"]["sha256"] == sha256(Path("published.pt"))
    images, prompts, expected, dimension = _golden(name, run)
    scores = load_reward(f"./made{dimension}", torch.device("cpu"))(images, prompts)[:, 0]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=TOLERANCES.get(name, 5e-5), rtol=0)


AUTHORS = ("trainer", "trainer.models", "trainer.models.clip_model")


def _as_module(state: dict[str, Tensor]) -> nn.Module:
    """Nested modules whose state dict is `state`, of a class in a module that only its author has."""
    authors = types.ModuleType(AUTHORS[-1])
    kind = type("CLIPModel", (nn.Module,), {"__module__": authors.__name__, "__qualname__": "CLIPModel"})
    authors.__dict__["CLIPModel"] = kind
    for name in AUTHORS:
        sys.modules[name] = authors
    root = kind()
    for key, tensor in state.items():
        *path, last = key.split(".")
        place: nn.Module = root
        for part in path:
            if part not in place._modules:  # pyright: ignore[reportPrivateUsage]
                place.add_module(part, kind())
            place = place.get_submodule(part)
        if tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor))
        else:
            place.register_buffer(last, tensor)
    return root


@pytest.mark.usefixtures("place")
def test_mps_is_converted_from_its_pickled_module(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(_as_module(golden.checkpoint("mps_small")), "MPS_overall_checkpoint.pth")
    for name in AUTHORS:
        del sys.modules[name]
    assert _type("mps", checkpoint="MPS_overall_checkpoint.pth", **HEADS) == 1
    assert "trainer.models.clip_model.CLIPModel" in capsys.readouterr().err
    assert not Path("made").exists()
    assert _type("mps", "--allow_pickle", checkpoint="MPS_overall_checkpoint.pth", **HEADS) == 0
    images, prompts, expected, _ = _golden("mps", "mps_small")
    scores = load_reward("./made.overall", torch.device("cpu"))(images, prompts)[:, 0]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=2e-4, rtol=0)


@pytest.mark.usefixtures("place")
def test_a_dry_run_tells_the_sizes_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _prepare("hps-v2", "hpsv2_small", _wrapped)
    assert _type("hps-v2", "--dry-run", **HEADS) == 0
    said = capsys.readouterr().out
    assert "recognised: OpenAI's or open_clip's CLIP; 1,416,529 numbers" in said
    assert '"head_width": 16' in said
    assert not Path("made").exists()


@pytest.mark.usefixtures("place")
def test_without_out_the_name_works_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", "home")
    _prepare("hps-v2", "hpsv2_small", _wrapped)
    given = [part for option, value in HEADS.items() for part in (f"--{option}", value)]
    out = load_cards()["hps-v2"].path
    if out.exists():
        pytest.skip("the published weights are here, and are not overwritten")
    try:
        assert main(["convert", "published.pt", "--as", "hps-v2", *given]) == 0
        assert load_reward("hps-v2", torch.device("cpu")).dimensions == ("overall",)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _another(state: dict[str, Tensor]) -> Any:
    return state | {"extra": torch.zeros(2)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hps-v3", [], "Nearest names: hps-v2"),
        ("mps", [], "must be MPS (with cross_model"),
        ("aesthetic", [], "aesthetic needs --clip as well"),
        ("image-reward", [], "image-reward needs --tokenizer as well"),
        ("hps-v2", ["--clip", "published.pt"], "hps-v2 is made without --clip"),
        ("hps-v2", ["--out", "there"], "there is there already, and is not overwritten"),
        ("hps-v2", [], "extra (2,) is unexpected"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    place: Path, name: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare("hps-v2", "hpsv2_small", _another)
    (place / "there").mkdir()
    (place / "there/mine.txt").write_text("mine")
    assert main(["convert", "published.pt", "--as", name, "--text_heads", "2", "--vision_heads", "4", *options]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["published.pt", "there"]


@pytest.mark.usefixtures("place")
def test_a_damaged_copy_of_the_published_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare("hps-v2", "hpsv2_small", _wrapped)
    source = Source("published.pt", repository="a/b", sha256="0" * 64)
    known = {"hps-v2": replace(load_cards()["hps-v2"], checkpoint=source)}
    monkeypatch.setattr("recipes.convert.load_cards", lambda: known)
    assert _type("hps-v2", **HEADS) == 1
    assert "published.pt is not the file that huggingface.co/a/b publishes" in capsys.readouterr().err
    shutil.move("published.pt", "my_own.pt")
    assert _type("hps-v2", checkpoint="my_own.pt", **HEADS) == 0
