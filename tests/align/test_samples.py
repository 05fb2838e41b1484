"""The image store, and the training set made from a selection of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from torch import Tensor

from align import samples
from align.samples import SampleRow, SampleStore, export_imagefolder, image_id, prompt_id

PROMPTS = ("a red circle", "two blue stars", "Ünïcode: 猫 \u2028\n and “quotes”")


@pytest.fixture
def images() -> Tensor:
    """Six images whose pixels are whole 8-bit levels, so that a PNG keeps them exactly."""
    levels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


@pytest.fixture
def store(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    """A complete store: two images of each prompt, in shards of four and two."""
    monkeypatch.setattr(samples, "SHARD_SIZE", 4)
    store = SampleStore(tmp_path / "samples")
    store.claim({"images": 6})
    rows = [store.row(2 * prompt + index, PROMPTS[prompt], index, 10 * prompt + index, "m" * 16)
            for prompt in range(3) for index in range(2)]  # fmt: skip
    store.write(rows, images)
    store.seal(rows[:4])
    store.seal(rows[4:])
    return store


class TestNames:
    def test_ids_never_change(self) -> None:
        # Written down once: scores of years ago must still find their images.
        assert prompt_id("a red circle") == "8cbf502735c9b035"
        assert image_id("8cbf502735c9b035", 7) == "8cbf502735c9b035-0007"

    def test_different_prompts_differ(self) -> None:
        assert len({prompt_id(f"prompt {number}") for number in range(10_000)}) == 10_000


class TestStore:
    def test_rows_come_back_in_order(self, store: SampleStore) -> None:
        rows = store.rows()
        assert [(row.text, row.sample_index, row.seed) for row in rows] == [
            (PROMPTS[prompt], index, 10 * prompt + index) for prompt in range(3) for index in range(2)
        ]
        assert [row.path.parent.name for row in rows] == ["00000"] * 4 + ["00001"] * 2
        assert all(row.path.stem == row.image_id == f"{prompt_id(row.text)}-{row.sample_index:04d}" for row in rows)
        assert {row.model for row in rows} == {"m" * 16}

    def test_images_come_back_exactly(self, store: SampleStore, images: Tensor) -> None:
        assert torch.equal(store.load(store.rows()), images)
        assert torch.equal(store.load(store.rows()[3:0:-1]), images[[3, 2, 1]])

    def test_pixels_are_rounded_as_diffusers_rounds_them(self, tmp_path: Path) -> None:
        store = SampleStore(tmp_path)
        row = store.row(0, "a", 0, 0, "m")
        values = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
        store.write([row], values)
        expected = (values[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        assert np.array_equal(np.asarray(Image.open(row.path)), expected)

    def test_the_folder_is_an_imagefolder(self, store: SampleStore, images: Tensor, tmp_path: Path) -> None:
        data: Any = load_dataset(
            "imagefolder", data_dir=str(store.folder), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert set(data.column_names) == {"image", "text", "prompt_id", "sample_index", "seed", "model"}
        by_id = {(row["text"], row["sample_index"]): row for row in data}
        for row, image in zip(store.rows(), images, strict=True):
            found = by_id[row.text, row.sample_index]
            assert found["seed"] == row.seed
            assert np.array_equal(np.asarray(found["image"]), (image.permute(1, 2, 0).numpy() * 255).round())

    def test_only_complete_images_count_as_there(self, store: SampleStore) -> None:
        rows = store.rows()
        assert store.has(rows)
        content = rows[2].path.read_bytes()
        flipped = content[:60] + bytes([content[60] ^ 1]) + content[61:]
        for damaged in (content[:-20], content[:-5], content[:40], b"", b"no image", flipped):
            rows[2].path.write_bytes(damaged)
            assert not store.has(rows)
            assert store.has(rows[:2] + rows[3:])
        rows[2].path.unlink()
        assert not store.has(rows)

    def test_an_unfinished_store_says_so(self, store: SampleStore) -> None:
        (store.folder / "00000" / "_SUCCESS").unlink()
        with pytest.raises(ValueError, match="2 images in finished shards, of 6. Run the command"):
            store.rows()

    def test_another_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is not a folder of generated samples"):
            SampleStore(tmp_path).rows()

    @pytest.mark.parametrize("content", ['{"file_name": "a.png"}\n', "{\n", "[1]\n"])
    def test_damaged_metadata_is_named(self, store: SampleStore, content: str) -> None:
        path = store.folder / "00001" / "metadata.jsonl"
        path.write_text(content)
        with pytest.raises(ValueError, match=f"{path} is damaged .* Delete .*00001/_SUCCESS"):
            store.rows()

    def test_a_damaged_or_missing_image_is_named(self, store: SampleStore) -> None:
        row = store.rows()[5]
        row.path.write_bytes(row.path.read_bytes()[:100])
        with pytest.raises(ValueError, match=f"{row.path} is missing or damaged"):
            store.load([row])
        row.path.unlink()
        with pytest.raises(ValueError, match=f"{row.path} is missing or damaged"):
            store.load([row])


class TestClaim:
    def test_the_same_experiment_may_go_on(self, store: SampleStore) -> None:
        store.claim({"images": 6})

    def test_another_experiment_is_refused_with_the_difference(self, store: SampleStore) -> None:
        with pytest.raises(ValueError, match="images was 6, is 8; seed was None, is 1. Go back"):
            store.claim({"images": 8, "seed": 1})
        store.claim({"images": 6})

    def test_a_folder_without_images_binds_nobody(self, tmp_path: Path) -> None:
        store = SampleStore(tmp_path)
        store.claim({"images": 6, "scheduler": "mistyped"})
        store.claim({"images": 6, "scheduler": None})
        assert json.loads((tmp_path / "generation.json").read_text()) == {"images": 6, "scheduler": None}


class TestExport:
    def test_a_selection_opens_with_datasets(self, store: SampleStore, images: Tensor, tmp_path: Path) -> None:
        rows, out = [store.rows()[index] for index in (5, 0)], tmp_path / "selected"
        export_imagefolder(rows, {"hps.overall": [0.25, 1.5], "gold": [1, 0]}, out)
        data: Any = load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
        found = {row["text"]: row for row in data}
        assert found.keys() == {PROMPTS[2], PROMPTS[0]}
        for row, image, hps, gold in zip(rows, images[[5, 0]], (0.25, 1.5), (1, 0), strict=True):
            columns = dict(found[row.text])
            assert np.array_equal(np.asarray(columns.pop("image")), (image.permute(1, 2, 0).numpy() * 255).round())
            assert columns == {
                "text": row.text,
                "prompt_id": row.prompt_id,
                "sample_index": row.sample_index,
                "seed": row.seed,
                "model": row.model,
                "hps.overall": hps,
                "gold": gold,
            }

    def test_replaces_what_was_there(self, store: SampleStore, tmp_path: Path) -> None:
        for rows in (store.rows(), store.rows()[:1]):
            export_imagefolder(rows, {}, tmp_path / "selected")
        names = sorted(path.name for path in (tmp_path / "selected").iterdir())
        assert names == [store.rows()[0].path.name, "metadata.jsonl"]

    def test_a_failure_leaves_nothing(self, store: SampleStore, tmp_path: Path) -> None:
        store.rows()[3].path.unlink()
        with pytest.raises(FileNotFoundError):
            export_imagefolder(store.rows(), {}, tmp_path / "selected")
        assert not [path for path in tmp_path.iterdir() if "selected" in path.name]

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ({"hps": [1.0]}, "'hps' are 1, for 6 images"),
            ({"hps": [1.0] * 5 + [float("nan")]}, "'hps' are not all finite"),
            ({"seed": [1.0] * 6}, "called 'seed', which is a column"),
        ],
    )
    def test_scores_must_fit(
        self, store: SampleStore, tmp_path: Path, scores: dict[str, list[float]], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            export_imagefolder(store.rows(), scores, tmp_path / "selected")

    def test_nothing_selected_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no image to write"):
            export_imagefolder(list[SampleRow](), {}, tmp_path / "selected")
