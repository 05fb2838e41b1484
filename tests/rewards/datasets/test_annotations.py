"""Annotations of one's own: people's remarks become one as the paper says, and each bad line is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.datasets.annotations import read_annotations
from rewards.datasets.rich import list_splits, read_rich_feedback
from rewards.datasets.rich_feedback import Problem, RichFeedback
from rewards.datasets.statistics import rich_statistics
from rewards.rahf.network import HEATMAPS, SCORES

HEIGHT, WIDTH = 40, 60


def remark(scores: tuple[int, int, int, int], **said: Any) -> dict[str, Any]:
    return {"scores": dict(zip(SCORES, scores, strict=True)), **said}


def row(**changes: Any) -> dict[str, Any]:
    remarks = [
        remark((1, 2, 3, 4), implausible=[[10.0, 20.0]], misaligned_words=[1, 2]),
        remark((5, 2, 3, 4), implausible=[[10.0, 20.0], [50.0, 5.0]], misaligned_words=[1]),
        remark((3, 2, 3, 1)),
    ]
    return {"file_name": "a.png", "text": "a red, red cat", "remarks": remarks} | changes


def read(folder: Path, *rows: object) -> tuple[list[RichFeedback], list[Problem]]:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    problems = list[Problem]()
    return list(read_annotations(folder, "train", problems)), problems


def test_remarks_become_one(tmp_path: Path) -> None:
    (found,), problems = read(tmp_path, row())
    assert not problems
    assert found.words == ("a", "red", "red", "cat") and found.misaligned == (False, True, False, False)
    assert dict(found.scores) == pytest.approx(dict(zip(SCORES, (0.5, 0.25, 0.5, 0.5), strict=True)))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    first, second = ((x - a) ** 2 + (y - b) ** 2 <= (HEIGHT / 20) ** 2 for a, b in ((10, 20), (50, 5)))
    expected = (2 * first + second) / 3
    np.testing.assert_allclose(found.heatmaps["implausibility"]().numpy(), expected, atol=1e-7)
    assert found.heatmaps["misalignment"]().count_nonzero() == 0
    assert found.image().shape == (3, HEIGHT, WIDTH)
    assert [rating["plausibility"] for rating in found.ratings] == [1, 5, 3]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ("{", "no JSON"),
        ([], "must be an object"),
        (row(remarks=[]), "one or more objects"),
        (row(file_name="../a.png"), "must be below"),
        (row(file_name="b.png"), "image is missing"),
        (row(remarks=[remark((0, 2, 3, 4))]), "plausibility is 0; it must be a whole number from 1 to 5"),
        (row(remarks=[{}]), "plausibility is None"),
        (row(remarks=[remark((1, 2, 3, 4), misaligned_words=[4])]), "places among its 4 words"),
        (row(remarks=[remark((1, 2, 3, 4), implausible=[["x", 1]])]), "list of points"),
        (row(remarks=[remark((1, 2, 3, 4), misaligned=[[1, float("inf")]])]), "not finite"),
        (row(remarks=[remark((1, 2, 3, 4), implausibility=[[1, 1]])]), "Did you mean 'implausible'?"),
        (row(remarks=[remark((1, 2, 3, 4)), remark((1, 2, 3, 4), misaligned_word=[1])]), "mean 'misaligned_words'?"),
        (row(remarks=[remark((1, 2, 3, 4), zzz=0)]), "'zzz'; it may have scores, implausible, misaligned, misal"),
        (row(text=", .", remarks=[remark((1, 2, 3, 4))]), "has no words"),
        (row(), "comes more than once"),
    ],
)
def test_a_bad_line_is_left_out_and_named(tmp_path: Path, bad: object, fault: str) -> None:
    found, problems = read(tmp_path, row(), bad)
    assert len(found) == 1
    assert [problem.row for problem in problems] == ["line 2 of train.jsonl"]
    assert fault in problems[0].fault


def test_the_kind_of_a_folder_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no rich feedback"):
        list_splits(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        list_splits(tmp_path / "nothing")
    read(tmp_path, row())
    (tmp_path / "dev.jsonl").write_text("")
    assert list_splits(tmp_path) == ["train", "dev"]
    assert len(list(read_rich_feedback(tmp_path, "train", []))) == 1
    with pytest.raises(ValueError, match=r"test.jsonl does not exist; the splits there are \['dev', 'train'\]"):
        read_rich_feedback(tmp_path, "test", [])


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    (one,), _ = read(tmp_path, row())
    found = rich_statistics([one])
    assert (found.images, found.prompts, found.words, found.misaligned) == (1, 1, 4, 1)
    assert found.empty == {"implausibility": 0, "misalignment": 1}
    marked = (one.heatmaps["implausibility"]() > 0).float().mean().item()
    assert found.heat == {"implausibility": pytest.approx(marked), "misalignment": 0.0}
    assert found.scores["alignment"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert {name: int(counts.argmax()) for name, counts in found.spread.items()} == dict(
        zip(SCORES, (4, 0, 0, 3), strict=True)
    )
    with pytest.raises(ValueError, match="no good row"):
        rich_statistics([])


def test_maps_are_tensors_of_the_image_size(tmp_path: Path) -> None:
    (one,), _ = read(tmp_path, row())
    assert all(one.heatmaps[name]().shape == (HEIGHT, WIDTH) for name in HEATMAPS)
    assert one.heatmaps["implausibility"]().dtype == torch.float32
