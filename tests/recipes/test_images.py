"""Images and prompts are found wherever people keep them; what is missing is named."""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from recipes.image_texts import Captions
from recipes.images import find_items

CAPTIONS = {"a.png": "a red circle", "sub/b.PNG": "a blue square", "c d.jpeg": "three stars"}


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, a hidden one, one of ours and a text."""
    place = tmp_path / "images"
    for seed, name in enumerate([*CAPTIONS, ".hidden.png", "scores/own.png", "notes.txt"]):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(_png(seed))
    return place


def _names(images: Sequence[Path | str], captions: Captions = Captions(prompt="x")) -> list[str]:  # noqa: B008
    return [item.name for item in find_items([str(image) for image in images], captions)]


def test_a_folder_is_walked_in_order_without_hidden_files_and_ours(folder: Path) -> None:
    assert _names([folder]) == [str(folder / name) for name in ("a.png", "c d.jpeg", "sub/b.PNG")]


def test_files_and_globs_stand_for_themselves(folder: Path) -> None:
    assert _names([folder / "a.png", folder / "**/*.PNG"]) == [str(folder / "a.png"), str(folder / "sub/b.PNG")]


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_beside_the_images_has_their_prompts(folder: Path, kind: str, column: str) -> None:
    rows = [{"file_name": name, column: text} for name, text in CAPTIONS.items()]
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", column])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    items = find_items([str(folder)], Captions())
    assert {item.name: item.text for item in items} == {str(folder / name): text for name, text in CAPTIONS.items()}


def test_a_table_that_datasets_wrote_is_read_group_by_group(tmp_path: Path) -> None:
    images = [Image.open(io.BytesIO(_png(seed))) for seed in range(5)]
    table = datasets.Dataset.from_dict({"image": images, "prompt": [f"p{i}" for i in range(5)]})
    table = table.cast_column("image", datasets.Image())
    path = tmp_path / "t.parquet"
    table.to_parquet(path, batch_size=2)
    items = find_items([str(path)], Captions())
    assert [(item.name, item.text) for item in items] == [(f"{path}#{i}", f"p{i}") for i in range(5)]
    for item, image in zip(items, images, strict=True):
        expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
        assert torch.equal(item.image(), expected)


def test_a_shard_has_the_prompt_in_a_text_or_in_json(tmp_path: Path) -> None:
    path = tmp_path / "00.tar"
    members = {
        "a.png": _png(0),
        "a.txt": b"a red circle\n",
        "b.png": _png(1),
        "b.json": json.dumps({"caption": "two"}).encode(),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    items = find_items([str(path)], Captions())
    assert [(item.name, item.text) for item in items] == [
        (f"{path}/a.png", "a red circle"),
        (f"{path}/b.png", "two"),
    ]
    assert torch.equal(items[1].image(), find_items([_write(tmp_path / "b.png")], Captions(prompt=""))[0].image())


def _write(path: Path) -> str:
    path.write_bytes(_png(1))
    return str(path)


def test_an_image_is_known_by_its_content_and_prompt(folder: Path) -> None:
    before = {item.name: item.key for item in find_items([str(folder)], Captions(prompt="x"))}
    (folder / "a.png").rename(folder / "z.png")
    (folder / "c d.jpeg").write_bytes(_png(9))
    after = {item.name: item.key for item in find_items([str(folder)], Captions(prompt="x"))}
    other = {item.name: item.key for item in find_items([str(folder)], Captions(prompt="y"))}
    assert after[str(folder / "z.png")] == before[str(folder / "a.png")]
    assert after[str(folder / "c d.jpeg")] != before[str(folder / "c d.jpeg")]
    assert not set(other.values()) & set(after.values())


def test_a_file_of_prompts_goes_by_line_or_by_name(folder: Path, tmp_path: Path) -> None:
    lines, names = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("one\n\nthree\n\n")
    names.write_text("".join(json.dumps({"file_name": Path(n).name, "text": t}) + "\n" for n, t in CAPTIONS.items()))
    by_line = [item.text for item in find_items([str(folder)], Captions(file=lines))]
    by_name = [item.text for item in find_items([str(folder)], Captions(file=names))]
    assert by_line == ["one", "", "three"]
    assert by_name == ["a red circle", "three stars", "a blue square"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("one\ntwo\n", "p.txt", r"has 2 lines and there are 3 images \(.*a.png is the first\)"),
        ('{"file_name": "a.png", "text": "x"}\n', "p.jsonl", "c d.jpeg and 1 more of 3 images came without a prompt"),
        ('{"file_name": "a.png"\n', "p.jsonl", 'an object with "file_name" and "text" in each line'),
        ("x", "p.doc", "must be there, and end in .txt or .jsonl"),
    ],
    ids=["count", "missing", "json", "suffix"],
)
def test_prompts_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, content: str, name: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        find_items([str(folder)], Captions(file=tmp_path / name))


def test_images_without_prompts_are_told_the_ways_to_give_them(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a.png and 2 more of 3 .* metadata.jsonl .* --prompt TEXT .* --prompts FILE"):
        find_items([str(folder)], Captions())


def test_names_that_stand_for_nothing_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing called .*none\*.png. Give a folder"):
        _names([tmp_path / "none*.png"])
    with pytest.raises(ValueError, match="There is no image in"):
        _names([tmp_path])


@pytest.mark.parametrize(("name", "message"), [("t.parquet", "no parquet file"), ("t.tar", "no tar file")])
def test_damaged_archives_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=message):
        _names([tmp_path / name])


def test_a_table_without_images_shows_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has the columns url, text; none holds images"):
        _names([tmp_path / "t.parquet"])


def test_metadata_of_another_form_is_shown(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"image": "a.png", "text": "x"}\n')
    with pytest.raises(ValueError, match='must have a "file_name" and a "text" in each row'):
        find_items([str(folder)], Captions())


def test_files_and_globs_have_the_metadata_beside_them(folder: Path) -> None:
    rows = [{"file_name": name, "text": text} for name, text in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows))
    items = find_items([str(folder / "a.png"), str(folder / "c*")], Captions())
    assert [item.text for item in items] == ["a red circle", "three stars"]
    assert _names([folder / "*"]) == [str(folder / name) for name in ("a.png", "c d.jpeg", "sub/b.PNG")]


def test_a_list_of_captions_is_no_prompt(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ["one", "two"]}) + "\n")
    with pytest.raises(ValueError, match=r"a prompt must be one text, not \['one', 'two'\]"):
        find_items([str(folder)], Captions())


def test_a_bare_name_that_several_images_have_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "sub/a.png").write_bytes(_png(7))
    names = tmp_path / "p.jsonl"
    names.write_text(json.dumps({"file_name": "a.png", "text": "x"}) + "\n")
    with pytest.raises(ValueError, match=r"names a.png, and 2 of the images are called so. Write their whole names"):
        find_items([str(folder)], Captions(file=names))
