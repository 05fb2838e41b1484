"""Two folders compared on the command line: what is scored, said and written, and what is refused."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from align.generate import image_seed
from align.samples import SampleStore, prompt_id
from recipes import cli
from tests.pages import Tags, text

PROMPTS = ("a red circle", "a blue square", "a green star")
REWARD = '''"""A user's reward, which writes down what it was called with."""

from pathlib import Path

import torch

from rewards.base import Reward


class Colours(Reward):
    dimensions = ("red", "blue")
    differentiable = True

    def preprocess(self, image):
        return image

    def __call__(self, images, prompts):
        with Path("calls.txt").open("a") as file:
            file.write("".join(f"{prompt}\\n" for prompt in prompts))
        means = torch.stack([image.mean((1, 2))[[0, 2]] for image in images])
        return torch.where(means > 0.95, torch.nan, means)  # what is all white has no score
'''

Make = Callable[..., SampleStore]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a run folder of noise, somewhat lighter where asked; the user's reward is beside it."""
    (tmp_path / "compared_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)

    def make(
        name: str, lighter: float = 0.0, prompts: Sequence[str] = PROMPTS, n: int = 4, seed: int = 0
    ) -> SampleStore:
        store = SampleStore(tmp_path / name / "samples")
        store.claim({"images": n * len(prompts)})
        pairs = [(prompt, sample) for prompt in prompts for sample in range(n)]
        rows = [
            store.row(position, *pair, image_seed(seed, prompt_id(pair[0]), pair[1]), f"{name:f<16}")
            for position, pair in enumerate(pairs)
        ]
        noise = torch.rand(len(rows), 3, 8, 8, generator=torch.Generator().manual_seed(0))
        store.write(rows, (0.5 * noise + lighter).clamp(0, 1))
        store.seal(rows)
        return store

    return make


def pictures(folder: str, levels: Mapping[str, float], texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Plain pictures of one grey each, in [0, 1], by their file names, with a metadata.jsonl where there are texts."""
    for name, level in levels.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (round(255 * level),) * 3).save(path)
    if texts:
        lines = [json.dumps({"file_name": name, "text": words}) for name, words in texts.items()]
        Path(folder, "metadata.jsonl").write_text("\n".join(lines))


def compare(*argv: str, rewards: Sequence[str] = ("compared_reward:Colours",)) -> int:
    """The exit code of the command."""
    return cli.main(["compare", *argv, "--rewards", *rewards, "--device", "cpu"])


def calls() -> int:
    """How many images the reward has scored."""
    return len(Path("calls.txt").read_text().splitlines())


def test_both_folders_are_scored_and_compared_and_nothing_twice(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [make("one"), make("two", lighter=0.25)]
    assert compare("one", "two", "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert calls() == 24
    assert told["pairing"] == {"tie": "seed", "pairs": 12, "prompts": 3, "same_seeds": True, "uneven_prompts": 0}
    means = [store.load(store.rows()).mean((0, 2, 3)) for store in stores]
    for row, channel, dimension in zip(told["rows"], (0, 2), ("red", "blue"), strict=True):
        assert (row["reward"], row["dimension"], row["n"]) == ("compared_reward:Colours", dimension, 12)
        assert row["mean_a"] == pytest.approx(means[0][channel].item(), abs=1e-6)
        assert row["mean_b"] == pytest.approx(means[1][channel].item(), abs=1e-6)
        assert row["ci_low"] < row["difference"] < row["ci_high"]
        assert row["difference"] == pytest.approx(0.25, abs=0.01) and row["win_rate_b"] == 1.0
    kept = pq.read_table("two/scores/compared_reward~Colours.parquet")
    assert kept.num_rows == 12
    assert compare("one", "two") == 0
    assert calls() == 24
    table = capsys.readouterr().out
    assert "12 pairs of 3 prompts" in table and "share the prompt and the seed" in table


def test_what_align_score_has_scored_is_read(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two", lighter=0.1)
    for folder in ("one", "two"):
        assert cli.main(["score", folder, "--rewards", "compared_reward:Colours", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert compare("one", "two") == 0
    assert calls() == 24


def test_the_page_and_the_numbers_are_written_where_asked(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two", lighter=0.25)
    assert compare("one", "two", "--output_dir", "out", "--report") == 0
    assert "report: out/comparison.html" in capsys.readouterr().out
    assert sorted(path.name for path in Path("out").iterdir()) == ["comparison.html", "comparison.json"]
    content = json.loads(Path("out/comparison.json").read_text())
    assert (content["a"]["folder"], content["b"]["folder"]) == ("one", "two")
    page = Path("out/comparison.html").read_text()
    tags = Tags(page)
    assert tags.open == []
    # the first pair of each prompt, and each prompt once more, as all of them gained
    assert sum(tag == "img" for tag, _ in tags.seen) == 2 * (3 + 3)
    seed = image_seed(0, prompt_id(PROMPTS[0]), 0)
    assert f"a red circle seed {seed}" in text(page)
    assert "B lost most No prompt scored lower in B." in text(page)
    assert compare("one", "two", "--output_dir", "out") == 0, "the same comparison may be made again"


def test_json_is_alone_on_stdout(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two")
    options = ("--output_dir", "out", "--report", "--format", "json")
    assert compare("one", "two", *options, rewards=["sandbox-hps"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["rows"][0]["reward"] == "sandbox-hps"
    assert "weights: Apache-2.0" in streams.err and "report: out/comparison.html" in streams.err


def test_a_plan_scores_nothing(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two", prompts=PROMPTS[:2])
    before = sorted(tmp_path.rglob("*"))
    assert compare("one", "two", "--dry-run") == 0
    assert "plan: 12 and 8 images, 8 pairs of 2 prompts, 1 rewards" in capsys.readouterr().out
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)) == before


def test_other_counts_and_other_prompts_are_left_out_and_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two", prompts=[*PROMPTS[:2], "something else"], n=3)
    assert compare("one", "two") == 0
    table = capsys.readouterr().out
    assert "6 pairs of 2 prompts" in table
    assert "6 images of A and 3 of B have no partner and are left out" in table
    assert "2 of 2 common prompts have more images in one folder than in the other" in table
    assert f"without a partner in A: 00000/{prompt_id(PROMPTS[0])}-0003.png" in table


def test_other_seeds_are_warned_of(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two", seed=1)
    assert compare("one", "two", "--output_dir", "out", "--report") == 0
    assert "Warning: the seeds differ" in capsys.readouterr().out
    page = text(Path("out/comparison.html").read_text())
    assert "Warning: the seeds differ" in page
    assert not any(f"{prompt} seed" in page for prompt in PROMPTS)


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The JSON of a comparison that worked."""
    assert compare(*argv, "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_any_pictures_with_prompts_are_compared_by_their_files(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"1.png": "a", "2.png": "a", "3.png": "b"}
    pictures("one", {"1.png": 0.1, "2.png": 0.2, "3.png": 0.3}, texts)
    pictures("two", {"1.png": 0.3, "2.png": 0.2, "3.png": 0.8, "4.png": 0.9}, texts | {"4.png": "c"})
    found = told(capsys, "one", "two")
    assert found["pairing"] == {"tie": "file", "pairs": 3, "prompts": 2, "same_seeds": None, "uneven_prompts": 0}
    assert found["b"] == {"folder": "two", "images": 4, "unpaired": ["4.png"]}
    red = found["rows"][0]
    assert red["mean_a"] == pytest.approx((0.15 + 0.3) / 2, abs=0.01)  # prompts weigh alike, whatever their images
    assert red["difference"] == pytest.approx((0.1 + 0.5) / 2, abs=0.01)
    assert [move["prompt"] for move in red["gained"]] == ["b", "a"]
    assert pq.read_table("one/scores/compared_reward~Colours.parquet").num_rows == 3
    assert told(capsys, "one", "two")["rows"] == found["rows"]
    assert calls() == 7


def test_prompts_may_come_from_a_file_or_be_one(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    levels = {"1.png": 0.1, "2.png": 0.2, "3.png": 0.4}
    pictures("one", levels)
    pictures("two", {name: 2 * level for name, level in levels.items()})
    Path("prompts.txt").write_text("x\ny\nz\n")
    assert told(capsys, "one", "two", "--prompts", "prompts.txt")["pairing"]["prompts"] == 3
    found = told(capsys, "one", "two", "--prompt", "x")
    assert (found["pairing"]["prompts"], found["rows"][0]["interval_over"]) == (1, "images")
    assert "All pairs are of one prompt" in found["notes"][-1]


def test_a_generated_folder_is_compared_with_another(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one", prompts=PROMPTS[:2], n=2)
    pictures("two", {f"{index}.png": 0.7 for index in range(4)})
    Path("prompts.txt").write_text("\n".join(prompt for prompt in PROMPTS[:2] for _ in range(2)))
    found = told(capsys, "one", "two", "--prompts", "prompts.txt", "--output_dir", "out", "--report")
    assert (found["pairing"]["tie"], found["pairing"]["pairs"]) == ("order", 4)
    assert Tags(Path("out/comparison.html").read_text()).open == []


def test_images_without_a_score_are_named_and_left_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {f"{index}.png": f"prompt {index}" for index in range(5)}
    pictures("one", {name: 0.1 * index for index, name in enumerate(texts)}, texts)
    pictures("two", {name: 1.0 if name == "3.png" else 0.5 for name in texts}, texts)
    Path("two/0.png").write_bytes(Path("two/0.png").read_bytes()[:40])
    assert compare("one", "two", "--output_dir", "out", "--report", "--format", "json") == 0
    streams = capsys.readouterr()
    rows = json.loads(streams.out)["rows"]
    assert [(row["n"], row["unscored_pairs"]) for row in rows] == [(3, 2), (3, 2)]
    assert "not scored: two/0.png: " in streams.err and "not scored: two/3.png: " in streams.err
    page = text(Path("out/comparison.html").read_text())
    assert "2 pairs have no finite score by compared_reward:Colours red." in page
    assert "prompt 0 " not in page


def test_prompts_for_images_that_have_some_are_a_mistake(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two")
    assert compare("one", "two", "--prompt", "x") == 1
    assert "Both folders hold generated images, which have their prompts" in capsys.readouterr().err
    assert compare("one", "two", "--prompt", "x", "--prompts", "y") == 1
    assert "--prompt and --prompts came together" in capsys.readouterr().err


def test_pictures_without_prompts_are_told_the_ways_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pictures("one", {"1.png": 0.1})
    pictures("two", {"1.png": 0.1})
    assert compare("one", "two") == 1
    assert "one/1.png came without a prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["one", "one"], "one and one are the same images; a comparison needs two"),
        (["one", "one/samples"], "one and one/samples are the same images"),
        (["one", "other"], "The first folder has 3 prompts (one is 'a red circle'), the second 1 prompts (one is 'x')"),
        (["one", "nowhere"], "nowhere is no folder"),
        (["one", "compared_reward.py"], "compared_reward.py is no folder"),
        (["one", "two", "--report"], "--report came without --output_dir"),
        (
            ["one", "two", "--output_dir", "out"],
            "out/comparison.json is not the comparison of one and two, and would be overwritten",
        ),
        (["one", "two", "--format", "yaml"], "--format"),
    ],
    ids=["same", "same-samples", "prompts", "missing", "file", "report", "overwrite", "format"],
)
def test_mistakes_are_answered_before_the_work(
    argv: list[str], message: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("one")
    make("two")
    make("other", prompts=["x"])
    Path("out").mkdir()
    Path("out/comparison.json").write_text('{"a": {"folder": "three"}, "b": {"folder": "four"}}')
    assert compare(*argv) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("calls.txt").exists()


@pytest.mark.parametrize("content", ['{"a": {"folder": "one"}}', '{"a": 1, "b": 2}', "[]", "1"])
def test_a_users_file_of_that_name_is_not_overwritten(
    content: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("one")
    make("two")
    Path("out").mkdir()
    Path("out/comparison.json").write_text(content)
    assert compare("one", "two", "--output_dir", "out") == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("out/comparison.json").read_text() == content


def test_an_unknown_reward_is_answered_with_the_nearest(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("one")
    make("two")
    assert compare("one", "two", rewards=["sandbox-hsp"]) == 1
    assert "Nearest names: sandbox-hps" in capsys.readouterr().err


def test_transparent_pictures_are_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"1.png": "a", "2.png": "b"}
    pictures("one", dict.fromkeys(texts, 0.1), texts)
    pictures("two", dict.fromkeys(texts, 0.2), texts)
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save("two/1.png")
    assert compare("one", "two") == 0
    assert "1 of 2 images of two have transparent parts, flattened on white." in capsys.readouterr().out


def test_a_folder_within_the_other_is_refused(tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    del make
    (tmp_path / "outer/inner").mkdir(parents=True)
    for place in ("outer", "outer/inner"):
        Image.new("RGB", (8, 8)).save(tmp_path / place / "0.png")
    assert compare("outer", "outer/inner", "--prompt", "x") == 1
    assert "outer/inner is in outer, whose images hold its own" in capsys.readouterr().err
