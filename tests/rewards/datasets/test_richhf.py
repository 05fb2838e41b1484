"""A data set of 30 rows in the real layout of RichHF-18K, written byte by byte, and what can be wrong with it."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rewards.datasets import pickapic
from rewards.datasets.rich_feedback import Problem, RichFeedback
from rewards.datasets.richhf import join_images, labelled, read_richhf
from tests.rewards.datasets.written import (
    Row,
    example,
    features,
    make_rows,
    png,
    record,
    write_pickapic,
    write_records,
    write_richhf,
)


def assert_same(found: RichFeedback, row: Row) -> None:
    """A row comes back as it was written."""
    assert (found.image_id, found.prompt) == (row.uid, row.prompt)
    assert found.misaligned == tuple(label == "0" for label in row.labels.split())
    names = ("plausibility", "alignment", "aesthetics", "overall")
    assert [found.scores[name] for name in names] == pytest.approx(row.scores)
    for name, levels in (("implausibility", row.artifacts), ("misalignment", row.misalignment)):
        assert (np.round(255 * found.heatmaps[name]().numpy()) == levels).all()
    assert (np.round(255 * found.image().permute(1, 2, 0).numpy()) == row.picture).all()


def test_thirty_rows_come_back(tmp_path: Path) -> None:
    rows, problems = make_rows(), list[Problem]()
    write_richhf(tmp_path / "richhf", rows)
    found = list(read_richhf(tmp_path / "richhf", "train", problems))
    assert problems == []
    assert len(found) == 30
    for one, row in zip(found, rows, strict=True):
        assert_same(one, row)
    assert found[1].words == ("the", "big", "cat's", "hat", "half-hidden")
    assert found[2].words == ("Green", "triangle", "on", "white")
    assert not (tmp_path / "richhf" / "missing-train.txt").exists()


def test_the_parquet_files_are_not_needed_any_more(tmp_path: Path) -> None:
    write_richhf(tmp_path, make_rows(6))
    join_images(tmp_path, "train")
    shutil.rmtree(tmp_path / "pickapic")
    assert len(list(read_richhf(tmp_path, "train", []))) == 6


def test_a_join_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Of one image the caption is lacking, of one a part is there under another name, one is whole and stays."""
    rows, images = make_rows(6), tmp_path / "images"
    write_richhf(tmp_path, rows)
    join_images(tmp_path, "train")
    (images / f"{rows[0].uid}.txt").unlink()
    (images / f"{rows[1].uid}.jpg").rename(images / f".{rows[1].uid}.jpg.partial")
    (images / f"{rows[2].uid}.txt").write_text("kept")
    assert pickapic.absent([row.uid for row in rows], images) == [rows[0].uid, rows[1].uid]
    assert join_images(tmp_path, "train") == []
    assert (images / f"{rows[2].uid}.txt").read_text() == "kept"


def test_missing_images_are_counted_listed_and_refused_above_one_in_twenty(tmp_path: Path) -> None:
    rows, problems = make_rows(30), list[Problem]()
    write_richhf(tmp_path, rows)
    shutil.rmtree(tmp_path / "pickapic")
    write_pickapic(tmp_path / "pickapic", rows[:27])
    with pytest.raises(ValueError, match=r"3 of 30 images .* listed in .*missing-train.txt; at most 5% may be"):
        read_richhf(tmp_path, "train", problems)
    found = list(read_richhf(tmp_path, "train", problems, max_missing=0.1))
    assert (tmp_path / "missing-train.txt").read_text().split() == [row.uid for row in rows[27:]]
    assert len(found) == 27
    assert [problem.fault for problem in problems] == [f"{row.uid}: its image is missing." for row in rows[27:]]


def test_found_images_are_struck_off_the_list(tmp_path: Path) -> None:
    folder, shards = tmp_path / "richhf", tmp_path / "richhf" / "pickapic"
    write_richhf(folder, make_rows(6))
    shards.rename(tmp_path / "elsewhere")
    assert len(join_images(folder, "train", max_missing=1.0)) == 6
    (tmp_path / "elsewhere").rename(shards)
    assert join_images(folder, "train") == []
    assert not (folder / "missing-train.txt").exists()


def test_a_second_process_waits_until_the_first_has_joined(tmp_path: Path) -> None:
    write_richhf(tmp_path, make_rows(6))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(tmp_path / ".joining.lock"):  # a lock of its own, as another process has
            second = pool.submit(join_images, tmp_path, "train")
            with pytest.raises(TimeoutError):
                second.result(timeout=0.3)
            assert not (tmp_path / "images").exists()
        assert second.result() == []


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows, problems = make_rows(12), list[Problem]()
    write_richhf(tmp_path, rows)
    bad = [features(row, "train") for row in rows]
    bad[0]["prompt_misalignment_label"] = b"1 1 0"
    bad[1]["prompt_misalignment_label"] = b"1 2 1 1 1"
    bad[2]["overall_score"] = 4.0
    bad[3]["artifact_map"] = png(np.zeros((256, 256), np.uint8))
    bad[4]["misalignment_map"] = b"not an image"
    del bad[5]["artifact_score"]
    bad[6]["aesthetics_score"] = b"0.5"
    del bad[7]["filename"]
    payloads = [example(each) for each in bad]
    payloads[8] = b"\x0a\xff nonsense"
    write_records(tmp_path / "train.tfrecord", [*payloads, example(features(rows[9], "train"))])
    found = list(read_richhf(tmp_path, "train", problems))
    assert [row.image_id for row in found] == [row.uid for row in rows[9:]]
    assert [problem.row for problem in problems] == [f"record {n} of train.tfrecord" for n in [*range(9), 12]]
    faults = [problem.fault for problem in problems]
    expected = [
        "3 labels came for the 7 words", "labels '1 2 1 1 1' must be", "overall is 4.0", "heatmap is 256 x 256",
        "cannot be decoded", "artifact_score must be one value of float; 0 came", "aesthetics_score must be one value",
        "filename must be one value", "no tf.train.Example", "comes more than once",
    ]  # fmt: skip
    assert all(part in fault for part, fault in zip(expected, faults, strict=True))
    assert all(row.uid in fault for row, fault in zip(rows[:7], faults, strict=False))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    rows = make_rows(3)
    write_richhf(tmp_path, rows)
    whole = (tmp_path / "train.tfrecord").read_bytes()
    (tmp_path / "train.tfrecord").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="train.tfrecord ends in the middle"):
        read_richhf(tmp_path, "train", [])
    first = len(record(example(features(rows[0], "train"))))
    (tmp_path / "train.tfrecord").write_bytes(whole[: first + 40] + b"?" + whole[first + 41 :])
    with pytest.raises(ValueError, match=f"wrong checksum in the record that begins at byte {first}"):
        read_richhf(tmp_path, "train", [])


def test_an_unknown_split_is_refused_with_the_known(tmp_path: Path) -> None:
    write_richhf(tmp_path, make_rows(3), "dev")
    with pytest.raises(ValueError, match=r"test.tfrecord does not exist; the splits there are \['dev'\]"):
        read_richhf(tmp_path, "test", [])


def test_parquet_files_of_something_else_are_refused(tmp_path: Path) -> None:
    write_richhf(tmp_path, make_rows(3))
    shutil.rmtree(tmp_path / "pickapic")
    (tmp_path / "other.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="must hold parquet files of Pick-a-Pic with the columns caption"):
        read_richhf(tmp_path, "train", [])


def test_a_damaged_image_says_so_when_it_is_read(tmp_path: Path) -> None:
    rows = [replace(row, picture=np.zeros((8, 8, 3), np.uint8)) for row in make_rows(3)]
    write_richhf(tmp_path, rows)
    join_images(tmp_path, "train")
    (tmp_path / "images" / f"{rows[0].uid}.jpg").write_bytes(b"\xff\xd8 broken")
    found = list(read_richhf(tmp_path, "train", []))
    with pytest.raises(ValueError, match=f"{rows[0].uid}: its image cannot be decoded. .* no image of a known format"):
        found[0].image()


def test_labels_as_the_authors_match_them() -> None:
    """Cut at , . ? ! " : ; and space only; 0 is misaligned (issue 12 of google-research-datasets/richhf-18k)."""
    words, misaligned = labelled("a well-lit cat's bed/sofa (blue)\nroom.", "1 0 1 1 0")
    assert words == ("a", "well-lit", "cat's", "bed/sofa", "(blue)\nroom")
    assert misaligned == (False, True, False, False, True)
