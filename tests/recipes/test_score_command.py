"""`align score` on images of any origin, as a user types it: what is printed, written, skipped and refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipes.score_output import DECILES, summarise
from rewards.image_file import read_image
from rewards.rahf.config import RahfConfig
from rewards.rahf.network import RahfNetwork
from tests.recipes.own_red import REWARD, Said
from tests.rewards import golden
from tests.rewards.test_rahf import TINY, save_rahf

CPU = torch.device("cpu")


def test_the_table_has_deciles_and_the_best_of_each_prompt(score: Callable[..., Said], place: Path) -> None:
    code, out, _ = score()
    assert code == 0
    lines = out.splitlines()
    red = [20 * (index + 1) / 255 for index in range(6)]
    numbers = np.array([6, np.mean(red), np.std(red), *np.quantile(red, DECILES)])
    assert lines[1].split()[:2] == ["own_red:Red", "red"]
    np.testing.assert_allclose([float(value) for value in lines[1].split()[2:]], numbers, atol=6e-5)
    assert lines[4].split() == ["0.3922", "pictures/4.png,", "of", "3:", "a", "red", "circle"]
    table = pq.read_table(place / "pictures/scores/all.parquet").to_pydict()
    assert table["name"] == [f"pictures/{index}.png" for index in range(6)]
    np.testing.assert_allclose(table["own_red:Red red"], red, atol=1e-6)


def test_nothing_is_scored_twice(score: Callable[..., Said], place: Path) -> None:
    first = score()
    (place / "own_red.py").write_text(REWARD.replace("pixels[:,", "1 / 0 * pixels[:,"))
    assert score()[:2] == first[:2]


def test_json_is_one_document_with_every_score(score: Callable[..., Said]) -> None:
    code, out, err = score("--format", "json", "--report", rewards=("sandbox-clip", "own_red:Red"))
    content = json.loads(out)
    assert code == 0
    assert "sandbox-clip: arXiv 2103.00020; weights: Apache-2.0" in err
    assert list(content["summary"]) == ["sandbox-clip overall", "own_red:Red red", "own_red:Red blue"]
    assert [image["name"] for image in content["images"]] == [f"pictures/{index}.png" for index in range(6)]
    assert content["images"][2]["scores"]["own_red:Red red"] == pytest.approx(60 / 255)
    assert content["skipped"] == []
    assert "report: pictures/scores/report.html" in err
    assert {row["text"]: row["name"] for row in content["best"]}.keys() == {"a red circle", "a <b>square</b>"}


def _spoil(place: Path) -> None:
    (place / "pictures/3.png").write_bytes(b"")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(place / "pictures/2.png")  # whose score is not a number


def test_a_bad_file_and_a_score_that_is_no_number_are_named_and_the_rest_goes_on(
    score: Callable[..., Said], place: Path
) -> None:
    _spoil(place)
    code, out, err = score()
    assert code == 0
    assert "not scored: pictures/3.png: The file is empty" in err
    assert "not scored: pictures/2.png: own_red:Red gave {'red': nan, 'blue': 0.0}; scores must be finite" in err
    assert out.splitlines()[-1] == "2 of 6 images were left out; they are named above."
    assert out.splitlines()[1].split()[2] == "4"
    table = pq.read_table(place / "pictures/scores/all.parquet")["own_red:Red red"].to_pylist()
    assert [value is None for value in table] == [False, False, True, True, False, False]


def test_what_is_bad_is_named_again_and_with_strict_the_exit_code_is_one(
    score: Callable[..., Said], place: Path
) -> None:
    _spoil(place)
    score()
    code, _, err = score("--strict", "--format", "json")
    assert code == 1
    assert "not scored: pictures/3.png" in err
    assert "error: 2 of 6 images were left out" in err
    Image.new("RGB", (4, 4)).save(place / "pictures/3.png")
    Image.new("RGB", (4, 4)).save(place / "pictures/2.png")
    assert score("--strict")[0] == 0


def test_where_no_image_can_be_scored_the_exit_code_is_one(score: Callable[..., Said], place: Path) -> None:
    (place / "bad.png").write_bytes(b"no picture")
    code, _, err = score("--prompt", "x", images=("bad.png",))
    assert code == 1
    assert "error: 1 of 1 images were left out" in err


def test_transparent_parts_are_said_to_be_flattened(score: Callable[..., Said], place: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(place / "clear.png")
    code, out, _ = score("--prompt", "x", images=("clear.png",), rewards=("sandbox-hps",))
    assert code == 0
    assert "1 of 1 images have transparent parts; they are flattened on white." in out


def test_scores_of_several_places_go_where_one_is(score: Callable[..., Said], place: Path) -> None:
    assert score("--prompt", "x", images=("pictures/1.png", "pictures/2.*"))[0] == 0
    assert (place / "scores/own_red~Red.parquet").is_file()
    assert score("--prompt", "x", "--output_dir", "elsewhere")[0] == 0
    assert (place / "elsewhere/own_red~Red.parquet").is_file()
    assert not (place / "pictures/scores").exists()


def test_the_page_shows_the_images(score: Callable[..., Said], place: Path) -> None:
    _spoil(place)
    assert score("--report")[0] == 0
    page = (place / "pictures/scores/report.html").read_text()
    assert page.index("pictures/5.png") < page.index("pictures/4.png") < page.index("pictures/0.png")
    assert "a &lt;b&gt;square&lt;/b&gt;" in page
    assert "The file is empty" in page


@pytest.fixture
def critic(tmp_path: Path) -> str:
    """A folder with a tiny RAHF, as a name for `--rewards`."""
    folder, network = tmp_path / "critic", RahfNetwork(RahfConfig(**TINY))
    golden.randomise(network)
    save_rahf(folder, network)
    card = {
        "reward": "rewards.rahf.critic:Rahf",
        "dimensions": ["plausibility", "alignment", "aesthetics", "overall"],
        "licence": "none",
        "paper": "arXiv 2312.10240",
    }
    (folder / "align_reward.json").write_text(json.dumps(card))
    return "./critic"


def test_a_critics_maps_and_words_are_kept_beside_the_scores(
    score: Callable[..., Said], critic: str, place: Path
) -> None:
    code, out, err = score("--report", rewards=(critic, "own_red:Red"))
    assert code == 0, err
    (maps,) = (place / "pictures/scores/heatmaps").iterdir()
    folders = sorted((maps / "pictures").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == [f"{index}.png" for index in range(6)]
    for index, folder in enumerate(folders):
        for kind in ("implausibility", "misalignment"):
            with Image.open(folder / f"{kind}.png") as heat:
                assert (heat.mode, heat.size) == ("L", (10, 8 + index))
            assert read_image(folder / f"{kind}-overlay.png").shape == (3, 8 + index, 10)
        record = json.loads((folder / "critique.json").read_text())
        assert [word for word, _ in record["words"]] == ["a", *("red circle", "<b>square</b>")[index % 2].split()]
    before = {path: path.stat().st_mtime_ns for path in maps.rglob("*.png")}
    assert score("--heatmaps", rewards=(critic, "own_red:Red"))[1].splitlines()[-1] == out.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in maps.rglob("*.png")} == before
    assert "implausibility" in (place / "pictures/scores/report.html").read_text()


def test_scores_are_the_same_with_and_without_maps(score: Callable[..., Said], critic: str) -> None:
    plain, drawn = (
        json.loads(score(*options, "--format", "json", rewards=(critic,))[1])["images"]
        for options in (("--output_dir", "one"), ("--output_dir", "two", "--heatmaps"))
    )
    for one, other in zip(plain, drawn, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "x", "--prompts", "y.txt"), "--prompt and --prompts came together"),
        (("--batch_size", "0"), "--batch_size: input should be greater than or equal to 1"),
        (("--format", "yaml"), "--format: input should be 'table' or 'json'"),
    ],
)
def test_wrong_options_are_refused(score: Callable[..., Said], arguments: tuple[str, ...], message: str) -> None:
    code, _, err = score(*arguments)
    assert code == 1
    assert message in err


def test_an_unknown_dimension_names_the_known_ones(score: Callable[..., Said]) -> None:
    code, _, err = score(rewards=("own_red:Red.green",))
    assert code == 1
    assert "There is no dimension 'green'; choose one of red, blue." in err


def test_a_summary_without_scores_is_empty() -> None:
    assert summarise([None]) == {"n": 0, "mean": None, "sd": None, "deciles": None}


def test_maps_belong_to_a_prompt(score: Callable[..., Said], critic: str, place: Path) -> None:
    for prompt in ("red", "blue", "red"):
        assert score("--prompt", prompt, "--report", images=("pictures/0.png",), rewards=(critic,))[0] == 0
    records = [json.loads(path.read_text()) for path in place.rglob("critique.json")]
    assert sorted(record["text"] for record in records) == ["blue", "red"]
    assert all([word for word, _ in record["words"]] == [record["text"]] for record in records)


@pytest.mark.parametrize("name", ["all.parquet", "report.html"])
def test_files_of_the_users_own_are_not_overwritten(score: Callable[..., Said], place: Path, name: str) -> None:
    (place / "out").mkdir()
    (place / "out" / name).write_text("mine")
    code, _, err = score("--report", "--output_dir", "out")
    assert code == 1
    assert f"out/{name} was not written by align score and would be overwritten" in err
    assert (place / "out" / name).read_text() == "mine"
    assert sorted(path.name for path in (place / "out").iterdir()) == [name]


def test_a_reading_that_failed_once_is_tried_again(
    score: Callable[..., Said], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("recipes.images.read_image", _broken)
        assert score("--strict")[0] == 1
    assert score("--strict")[0] == 0
    assert (place / "pictures/scores/own_red~Red.parquet").is_file()


def _broken(content: bytes) -> Tensor:
    raise OSError(5, "Input/output error")


def test_an_image_that_is_named_twice_counts_once(score: Callable[..., Said]) -> None:
    out = score("--format", "json", images=("pictures", "pictures/1.png"))[1]
    assert len(json.loads(out)["images"]) == 6
