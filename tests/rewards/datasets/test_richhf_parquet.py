"""Mirrors of RichHF-18K in parquet, in the ways in which images and maps are stored there."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from rewards.datasets.rich_feedback import Problem
from rewards.datasets.richhf_parquet import read_richhf_parquet
from tests.rewards.datasets.test_richhf import assert_same
from tests.rewards.datasets.written import COLUMNS, Row, make_rows, png


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {
        "filename": [f"train/{row.uid}.png" for row in rows],
        "image": [png(row.picture) for row in rows],
        "prompt": [row.prompt for row in rows],
        **{name: [row.scores[place] for row in rows] for place, name in enumerate(COLUMNS)},
        "artifact_map": [png(row.artifacts) for row in rows],
        "misalignment_map": [png(row.misalignment) for row in rows],
        "prompt_misalignment_label": [row.labels for row in rows],
    }


def _write(folder: Path, columns: dict[str, list[Any]], split: str = "train") -> None:
    """Two files, as the Hub has them."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    half = len(columns["filename"]) // 2
    for part, rows in enumerate((slice(half), slice(half, None))):
        table = pa.table({name: values[rows] for name, values in columns.items()})
        pq.write_table(table, folder / "data" / f"{split}-0000{part}-of-00002.parquet")


def _read(tmp_path: Path, problems: list[Problem], split: str = "train") -> list[Any]:
    return list(read_richhf_parquet(tmp_path / "mirror", split, problems, cache_dir=tmp_path / "cache"))


def test_thirty_rows_of_bytes_come_back(tmp_path: Path) -> None:
    rows, problems = make_rows(), list[Problem]()
    _write(tmp_path / "mirror", _columns(rows))
    found = _read(tmp_path, problems)
    assert problems == []
    for one, row in zip(found, rows, strict=True):
        assert_same(one, row)


def test_images_of_the_datasets_library_come_back(tmp_path: Path) -> None:
    rows = make_rows(4)
    pictures = {"image", "artifact_map", "misalignment_map"}
    columns = {
        name: [{"bytes": value, "path": None} for value in values] if name in pictures else values
        for name, values in _columns(rows).items()
    }
    types = {
        name: Image() if name in pictures else Value("float64" if name in COLUMNS else "string") for name in columns
    }
    (tmp_path / "mirror").mkdir()
    Dataset.from_dict(columns, features=Features(types)).to_parquet(str(tmp_path / "mirror" / "train-0-of-1.parquet"))
    for one, row in zip(_read(tmp_path, []), rows, strict=True):
        assert_same(one, row)


@pytest.mark.parametrize("fractions", [False, True])
def test_maps_as_rows_of_levels_and_labels_as_numbers_come_back(tmp_path: Path, fractions: bool) -> None:
    rows, columns = make_rows(3), _columns(make_rows(3))
    for name, maps in (
        ("artifact_map", [row.artifacts for row in rows]),
        ("misalignment_map", [row.misalignment for row in rows]),
    ):
        columns[name] = [(one / 255 if fractions else one.astype(int)).tolist() for one in maps]
    columns["prompt_misalignment_label"] = [[int(label) for label in row.labels.split()] for row in rows]
    columns["caption"] = columns.pop("prompt")
    _write(tmp_path / "mirror", columns)
    for one, row in zip(_read(tmp_path, []), rows, strict=True):
        assert_same(one, row)


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows, problems, columns = make_rows(6), list[Problem](), _columns(make_rows(6))
    columns["prompt_misalignment_label"][0] = "1 1"
    columns["overall_score"][1] = None
    columns["prompt"][2] = None
    columns["artifact_score"][3] = 5.0
    columns["artifact_map"][4] = b"?"
    _write(tmp_path / "mirror", columns)
    found = _read(tmp_path, problems)
    assert [one.image_id for one in found] == [rows[5].uid]
    assert [problem.row for problem in problems] == [f"row {number}" for number in range(5)]
    expected = ["2 labels came", "overall_score is None", "prompt is None", "plausibility is 5.0", "cannot be decoded"]
    for part, problem, row in zip(expected, problems, rows, strict=False):
        assert part in problem.fault
        assert row.uid in problem.fault or "prompt is None" in problem.fault


def test_an_image_that_is_not_there_is_named_when_it_is_read(tmp_path: Path) -> None:
    rows, columns = make_rows(4), _columns(make_rows(4))
    columns["image"][1] = None
    _write(tmp_path / "mirror", columns)
    with pytest.raises(ValueError, match=f"{rows[1].uid}: its image cannot be decoded. The column image holds NoneTyp"):
        _read(tmp_path, [])[1].image()


def test_files_that_are_not_there_or_lack_a_column_are_refused(tmp_path: Path) -> None:
    columns = _columns(make_rows(2))
    _write(tmp_path / "mirror", columns)
    with pytest.raises(ValueError, match=r"no test-\*.parquet; the splits there are \['train'\]"):
        _read(tmp_path, [], "test")
    del columns["overall_score"], columns["prompt"]
    _write(tmp_path / "mirror", columns, "dev")
    with pytest.raises(ValueError, match="overall_score, prompt or caption must be there, too"):
        _read(tmp_path, [], "dev")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "train-0.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"train-\*.parquet in .* cannot be read"):
        _read(tmp_path, [])


def test_levels_of_every_kind_stay_what_they_are(tmp_path: Path) -> None:
    """A map of ones as whole numbers is one level of 255, as fractions the highest."""
    columns = _columns(make_rows(2))
    ones = np.ones((4, 4))
    columns["artifact_map"] = [ones.tolist()] * 2
    columns["misalignment_map"] = [ones.astype(int).tolist()] * 2
    _write(tmp_path / "mirror", columns)
    maps = _read(tmp_path, [])[0].heatmaps
    assert (maps["implausibility"]() == 1).all()
    assert maps["misalignment"]().max().item() == pytest.approx(1 / 255)
