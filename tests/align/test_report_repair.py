"""The page of repairs: the order, the numbers, what is drawn of many, and what a user wrote."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align.report import repair
from align.report.repair import RepairedPicture, RepairReport, write_repair_report
from tests.pages import Tags, text


def strip(side: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.full((3, side, 4 * side), 0.5)


def picture(name: str, gain: float, verdict: str, more: Mapping[str, float] = {}, side: int = 8) -> RepairedPicture:  # noqa: B006
    before = {"alignment": 0.5, "plausibility": 0.25}
    after = {"alignment": 0.5 + more.get("alignment", 0.0), "plausibility": 0.25 + gain}
    return RepairedPicture(name, f"prompt of {name}", strip(side), before, after, verdict, 2, 8, 12.34)


def repaired(name: str, gain: float) -> RepairedPicture:
    return picture(name, gain, f"repaired: plausibility 0.25 -> {0.25 + gain:.2f}")


def make_report(pictures: Sequence[RepairedPicture], problems: Sequence[tuple[str, str]] = ()) -> RepairReport:
    return RepairReport("Repair of photos by <sandbox>", "plausibility", pictures, problems, "seed: 0\nrounds: 3\n")


def mixed_report() -> RepairReport:
    pictures = [
        picture("clean.png", 0.0, "no flaw found"),
        repaired("a.png", 0.25),
        picture("<b>.png", 0.5, "repaired: plausibility 0.25 -> 0.75", {"alignment": -0.125}),
        picture("stuck.png", 0.0, "kept: no candidate was better", side=300),
    ]
    return make_report(pictures, [("broken.png", "It cannot be read as an image (truncated).")])


def write(folder: Path, report: RepairReport) -> str:
    write_repair_report(folder / "page.html", report)
    return (folder / "page.html").read_text(encoding="utf-8")


def drawn(page: str) -> list[str]:
    """The names of the pictures that are drawn, in order."""
    return re.findall(r"<small>#[\d,]+ (.*?): ", page)


@pytest.mark.parametrize("report", [mixed_report(), make_report([])], ids=["mixed", "empty"])
def test_page_is_well_formed_and_loads_nothing(tmp_path: Path, report: RepairReport) -> None:
    page = write(tmp_path, report)
    tags = Tags(page)
    assert tags.open == []
    images = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert len(images) == len(report.pictures)
    assert all(re.match("data:image/(png|webp);base64,", image["src"] or "") for image in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "http" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert "Written by align" in page


def test_page_says_the_numbers(tmp_path: Path) -> None:
    page = text(write(tmp_path, mixed_report()))
    for words in (
        "+0.188 plausibility, mean gain",
        "Over 4 pictures; those that were left as they were count as 0. Over the 2 repaired: +0.375.",
        "no flaw found 1 repaired 2 kept 1 files left out 1",
        "From +0.250 to +0.500.",
        "plausibility 0.250 → 0.750 +0.500 alignment 0.500 → 0.375 −0.125",
        "plausibility 0.250 → 0.500 +0.250 alignment 0.500",
        "#1 <b>.png: 2 regions, 8 candidates, 12.3 s",
        "kept: no candidate was better prompt of stuck.png",
        "broken.png It cannot be read as an image (truncated).",
        "seed: 0 rounds: 3",
    ):
        assert words in page, words


def test_the_largest_gain_comes_first_and_outcomes_are_apart(tmp_path: Path) -> None:
    page = write(tmp_path, mixed_report())
    assert re.findall("<h2>(.*?)</h2>", page) == ["Gains", "Repaired", "No flaw found", "Kept", "Files left out"]
    assert drawn(page) == ["&lt;b&gt;.png", "a.png", "clean.png", "stuck.png"]


def test_a_strip_says_what_it_shows_to_those_who_do_not_see_it(tmp_path: Path) -> None:
    page = Tags(write(tmp_path, make_report([repaired("a.png", 0.5)])))
    (image,) = [attributes for tag, attributes in page.seen if tag == "img"]
    assert image["alt"] == "before, heat, mask, after of a.png: prompt of a.png"


def test_of_many_pictures_the_first_are_drawn_and_the_rest_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "DRAWN", 3)
    page = write(tmp_path, make_report([repaired(f"{index}.png", index / 100) for index in range(10)]))
    assert drawn(page) == ["9.png", "8.png", "7.png"]
    assert re.findall(r"<td class=\"text\">(\d.png)", page) == [f"{index}.png" for index in reversed(range(7))]
    assert "7 more" in text(page)


def test_without_a_repair_there_are_no_gains_to_draw(tmp_path: Path) -> None:
    page = write(tmp_path, make_report([picture("clean.png", 0.0, "no flaw found")]))
    assert "<h2>Gains" not in page
    assert "Over 1 picture; those that were left as they were count as 0." in text(page)


def test_without_a_picture_the_page_says_so(tmp_path: Path) -> None:
    page = text(write(tmp_path, make_report([], [("broken.png", "empty")])))
    assert "No picture was read" in page
    assert "broken.png empty" in page
