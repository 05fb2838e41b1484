"""`align convert` on checkpoints in the files of their authors: the rewards it makes give the authors' numbers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from recipes.cli import main
from rewards.base import Reward
from rewards.cards import Source, load_cards
from rewards.convert.published import PUBLISHED
from rewards.hub import sha256
from tests.rewards import golden
from tests.rewards.pickled_module import save_module
from tests.rewards.tokenizers_for_tests import golden_bert, golden_t5

OPENAI = ["--vision_heads", "1", "--text_heads", "1"]
OPEN_CLIP = ["--vision_heads", "4", "--text_heads", "2"]
Save = Callable[[dict[str, Tensor], Path], Any]


@dataclass(frozen=True)
class Original:
    """A checkpoint of the rule's weights as its authors' file.

    Attributes:
        name: Of the reward.
        layout: Of the tensors, and of the golden run.
        file: Its name.
        save: Writes the tensors.
        options: Of the command, beside `--as` and `--out`.
        tolerance: Of a score.
    """

    name: str
    layout: str
    file: str
    save: Save
    options: list[str]
    tolerance: float


def _wrapped(tensors: Mapping[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 0, "state_dict": tensors, "name": "clip"}, path)


def _with_clip(tensors: Mapping[str, Tensor], path: Path) -> None:
    clip = golden.checkpoint("openai_clip_l14_small") | {"input_resolution": torch.tensor(224)}
    torch.save(clip, path.with_name("clip.pt"))
    torch.save(tensors, path)


def _with_bert(tensors: Mapping[str, Tensor], path: Path) -> None:
    golden_bert().save(str(path.with_name("bert.json")))
    torch.save(tensors, path)


def _with_t5(tensors: Mapping[str, Tensor], path: Path) -> None:
    golden_t5().save(str(path.with_name("t5.json")))
    torch.save(tensors, path)


ORIGINALS = [
    Original("hps-v1", "hpsv1_small", "hpc.pt", _wrapped, OPENAI, 2e-6),
    Original("hps-v2", "hpsv2_small", "HPS_v2_compressed.pt", _wrapped, OPEN_CLIP, 2e-6),
    Original("hps-v2.1", "hpsv2_small", "small_HPS_v2.1.pt", _wrapped, OPEN_CLIP, 2e-6),
    Original("pickscore", "pickscore_small", "model.safetensors", save_file, OPEN_CLIP, 1e-4),
    Original("pickscore", "pickscore_small", "pytorch_model.bin", torch.save, OPEN_CLIP, 1e-4),
    Original("mps", "mps_small", "MPS_overall_state_dict.pt", torch.save, OPEN_CLIP, 2e-4),
    Original("mps", "mps_small", "MPS_overall_checkpoint.pth", save_module, [*OPEN_CLIP, "--allow-pickle"], 2e-4),
    Original("aesthetic", "laion_head_small", "linearMSE.pth", _with_clip, [*OPENAI, "--clip", "clip.pt"], 2e-6),
    Original(
        "image-reward",
        "imagereward_small",
        "ImageReward.pt",
        _with_bert,
        ["--vision_heads", "3", "--text_heads", "2", "--tokenizer", "bert.json"],
        5e-6,
    ),
    Original(
        "rahf-port", "rahf_small", "rahf_model.pt", _with_t5, ["--vision_heads", "4", "--tokenizer", "t5.json"], 1e-5
    ),
]
HPS = ORIGINALS[2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _save(original: Original) -> Path:
    path = Path(original.file)
    original.save(golden.checkpoint(original.layout), path)
    return path


def _convert(original: Original, *more: str) -> int:
    return main(["convert", original.file, "--as", original.name, "--out", "out", *original.options, *more])


def _load(folder: Path) -> Reward:
    """What the folder says it is."""
    entry = json.loads((folder / "align_reward.json").read_text())
    module, _, name = entry["reward"].partition(":")
    return getattr(import_module(module), name)(folder, device=torch.device("cpu"), **entry["args"])


def _expected(original: Original) -> tuple[list[tuple[int, int]], Tensor]:
    """Pairs of image and prompt, and the authors' scores of them in the columns of the reward.

    The first image has the size of the CLIPs: no resizing, which differs between versions of PIL, comes between.
    """
    run = golden.run("laion_small" if original.name == "aesthetic" else original.layout)
    rows = run["pairs"] if "pairs" in run else run["results"]["tau_0.3_infer_one_sample"]
    rows = [row for row in rows if row["image"] == 0 and row.get("prompt", 0) < 3]
    scores: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        score = row.get("scores", {}).values() or [row.get("score", row.get("antialias_off"))]
        scores.setdefault((row["image"], row.get("prompt", 0)), []).extend(score)
    return list(scores), torch.tensor(list(scores.values()))


@pytest.mark.parametrize("original", ORIGINALS, ids=lambda original: f"{original.name} {original.file}")
def test_a_checkpoint_becomes_the_reward(original: Original, capsys: pytest.CaptureFixture[str]) -> None:
    path = _save(original)
    assert _convert(original) == 0
    said, out = capsys.readouterr().out, Path("out")
    assert said.startswith(f"{original.name}: {load_cards()[original.name].paper}; weights: ")
    assert all(f"sha256 {sha256(file)}" in said for file in out.iterdir())
    entry = json.loads((out / "align_reward.json").read_text())
    assert (entry["converted_from"]["file"], entry["converted_from"]["sha256"]) == (original.file, sha256(path))
    reward, (pairs, expected) = _load(out), _expected(original)
    assert expected.numel()
    assert list(reward.dimensions) == entry["dimensions"]
    with torch.no_grad():
        scores = reward([golden.image(image) for image, _ in pairs], [golden.prompts()[prompt] for _, prompt in pairs])
    torch.testing.assert_close(scores, expected, atol=original.tolerance, rtol=0)
    path.unlink()


def test_every_published_card_can_be_converted() -> None:
    assert set(PUBLISHED) == {name for name, card in load_cards().items() if card.source}
    assert {original.name for original in ORIGINALS} == set(PUBLISHED)


def test_the_clip_below_a_head_is_named_too() -> None:
    head = next(original for original in ORIGINALS if original.name == "aesthetic")
    _save(head)
    assert _convert(head) == 0
    entry = json.loads(Path("out/align_reward.json").read_text())
    assert entry["converted_from"]["clip"] == {"file": "clip.pt", "sha256": sha256(Path("clip.pt"))}


def test_a_dry_run_says_what_was_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    _save(HPS)
    assert _convert(HPS, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "recognised: OpenAI's or open_clip's CLIP; 1,416,529 numbers\nopen_clip_config.json: {" in said
    assert '"vision_cfg": {"image_size": 224, "layers": 3, "width": 64, "head_width": 16, "patch_size": 14}' in said
    assert said.endswith("plan: open_clip_model.safetensors, open_clip_config.json, align_reward.json, into out\n")
    assert not Path("out").exists()


def test_a_dry_runs_configuration_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    _save(HPS)
    _convert(HPS, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("checkpoint:"))
    Path("convert.yaml").write_text("\n".join(lines[start:-1]))
    assert yaml.safe_load(Path("convert.yaml").read_text())["as"] == "hps-v2.1"
    assert main(["convert", "--config", "convert.yaml"]) == 0
    assert Path("out/align_reward.json").is_file()


def _refuse(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert main(["convert", *argv]) == 1
    assert message in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x.pt"], "'as' is required: give --as"),
        (["x.pt", "--as", "hps-v3"], "No checkpoint is converted as 'hps-v3'. Nearest names: hps-v2, hps-v1"),
        (["x.pt", "--as", "zzz"], "Nearest names: hps-v1, hps-v2, hps-v2.1, pickscore, mps, aesthetic, image-reward"),
        (["nowhere.pt", "--as", "mps"], "nowhere.pt is not a file"),
        (
            ["x.pt", "--as", "aesthetic"],
            "aesthetic needs --clip as well: give model.safetensors of huggingface.co/open",
        ),
        (["x.pt", "--as", "mps", "--clip", "x.pt"], "mps is made without --clip; leave it out"),
        (["x.pt", "--as", "image-reward"], "needs --tokenizer as well: give tokenizer.json of huggingface.co/google-b"),
        (["x.pt", "--as", "rahf-port"], "needs --tokenizer as well: give tokenizer.json of huggingface.co/google-t5"),
        (["x.pt", "--as", "rahf-port", "--tokenizer", "no.json"], "no.json is not a file"),
        (["x.pt", "--as", "mps", "--out", "full"], "full is there already, and is not overwritten. Move it away"),
        (["x.pt", "--as", "mps", "--out", "x.pt"], "x.pt is there already, and is not overwritten"),
        (["x.pt", "--as", "mps"], "x.pt is damaged"),
        (["--config", "typo.yaml"], "unknown key 'ass'. Did you mean 'as'?"),
    ],
)
def test_a_mistake_is_answered(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.pt").write_text("no checkpoint")
    Path("typo.yaml").write_text("ass: mps\n")
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    _refuse(argv, message, capsys)


def test_an_empty_folder_is_used() -> None:
    _save(HPS)
    Path("out").mkdir()
    assert _convert(HPS) == 0


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        (
            "hpsv2_small",
            "image-reward",
            "must be ImageReward (with blip.visual_encoder.cls_token); it has the layout of O",
        ),
        ("imagereward_small", "hps-v2", "it has the layout of ImageReward, which is converted as image-reward."),
        (
            "pickscore_small",
            "mps",
            "of a CLIP of transformers, which is converted as hps-v1 or hps-v2 or hps-v2.1 or pick",
        ),
        (
            "laion_head_small",
            "aesthetic",
            "transformers (with vision_model.embeddings.class_embedding); it has the layout",
        ),
    ],
)
def test_a_checkpoint_of_another_reward_is_refused(
    layout: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(golden.checkpoint(layout), "x.pt")
    golden_bert().save("bert.json")
    extra = {"image-reward": ["--tokenizer", "bert.json"], "aesthetic": ["--clip", "x.pt"]}
    _refuse(["x.pt", "--as", name, "--out", "out", *extra.get(name, [])], message, capsys)


def test_a_checkpoint_of_no_known_layout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(2)}, "x.pt")
    _refuse(["x.pt", "--as", "mps", "--out", "out"], "it has 1 tensors of no known layout (weight ...)", capsys)


def test_a_wrong_shape_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(golden.checkpoint("hpsv2_small") | {"ln_final.bias": torch.zeros(25)}, "x.pt")
    message = "ln_final.bias must be (24,), found (25,)"
    _refuse(["x.pt", "--as", "hps-v2", "--out", "out", *OPEN_CLIP], message, capsys)


def test_a_tokenizer_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    original = next(original for original in ORIGINALS if original.name == "image-reward")
    _save(original)
    golden_t5().save("bert.json")
    argv = [original.file, "--as", original.name, "--out", "out", *original.options]
    _refuse(argv, "bert.json has 32102 tokens, the network knows 30524", capsys)


def test_a_pickled_module_is_refused_without_leave(capsys: pytest.CaptureFixture[str]) -> None:
    save_module(golden.checkpoint("mps_small"), Path("mps.pth"))
    _refuse(["mps.pth", "--as", "mps", "--out", "out"], "give --allow-pickle", capsys)


def test_a_conversion_cut_short_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _save(HPS)
    monkeypatch.setattr("recipes.convert.describe", _interrupt)
    assert _convert(HPS) == 130
    assert [path.name for path in Path().iterdir()] == [HPS.file]


def _interrupt(card: object) -> None:
    assert Path(".out.tmp/open_clip_config.json").exists(), "nothing is written yet"
    raise KeyboardInterrupt


def test_a_damaged_copy_of_the_published_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source("published.pt", repository="a/b", sha256="0" * 64)
    known = {"hps-v2": replace(load_cards()["hps-v2"], checkpoint=source)}
    monkeypatch.setattr("recipes.convert.load_cards", lambda: known)
    (tmp_path / "published.pt").write_bytes(b"half of it")
    assert main(["convert", str(tmp_path / "published.pt"), "--as", "hps-v2", "--out", str(tmp_path / "made")]) == 1
    assert "published.pt is not the file that huggingface.co/a/b publishes" in capsys.readouterr().err
