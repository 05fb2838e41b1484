"""The page of scored images: the order, the numbers, what is drawn of many, and how much is in memory meanwhile."""

import html
import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from align.report.scores import ENDS, LISTED, MIDDLE, ScoredPicture, ScoreReport, rank_agreement, write_score_report
from tests.pages import Tags, text

COLUMNS = ("hps-v2.1 overall", "rahf plausibility")


def square(value: float, side: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.full((3, side, side), value)


def picture(index: int, *scores: float | None) -> ScoredPicture:
    return ScoredPicture(f"{index}.png", f"prompt {index}.", square(0.5), dict(zip(COLUMNS, scores, strict=False)))


def make_report(scores: Sequence[float | None], columns: Sequence[str] = COLUMNS[:1]) -> ScoreReport:
    return ScoreReport("Scores of a folder", columns, [picture(index, score) for index, score in enumerate(scores)])


def rich_report() -> ScoreReport:
    """Two rewards, heatmaps, words, a score that is missing, and a file that was skipped."""
    overlays = {"misalignment": square(0.1), "implausibility": square(0.9)}
    pictures = [picture(0, 0.2, 0.9), picture(1, None, 0.8), picture(2, 0.4, 0.7), picture(3, 0.3, None)]
    words = [("two", True), ("red", False), ("cats", True)]
    pictures[2] = replace(pictures[2], prompt="two red cats", overlays=overlays, words=words)
    return ScoreReport("Scores of a folder", COLUMNS, pictures, [("broken.png", "the file is truncated")])


def write(folder: Path, report: ScoreReport) -> str:
    write_score_report(folder / "page.html", report)
    return (folder / "page.html").read_text(encoding="utf-8")


def drawn(page: str) -> list[str]:
    """The names of the images that are drawn, in order."""
    return re.findall(r"<small>#[\d,]+ (.*?)</small>", page)


@pytest.mark.parametrize("report", [make_report([0.1, 0.2]), rich_report()], ids=["plain", "rich"])
def test_page_is_well_formed_and_loads_nothing(tmp_path: Path, report: ScoreReport) -> None:
    page = write(tmp_path, report)
    tags = Tags(page)
    assert tags.open == []
    sources = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "http" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_page_says_the_numbers(tmp_path: Path) -> None:
    page = text(write(tmp_path, rich_report()))
    for words in (
        "0.300 hps-v2.1 overall",
        "Mean of 3 images, from 0.200 to 0.400. 1 without a score is not in it.",
        "images 4",
        "standard deviation 0.082",
        "files skipped 1",
        "mean 0.800, standard deviation 0.082, 3 images",
        "hps-v2.1 overall 1.000 −1.000",
        "rahf plausibility −1.000 1.000",
        "hps-v2.1 overall 0.400 rahf plausibility 0.700",
        "hps-v2.1 overall 0.300 rahf plausibility –",
        "1 without a score by hps-v2.1 overall",
        "– – 0.800 1.png prompt 1.",
        "broken.png the file is truncated",
    ):
        assert words in page, words


def test_images_come_from_the_best_to_the_worst_and_equal_ones_as_they_came(tmp_path: Path) -> None:
    page = write(tmp_path, make_report([0.2, 0.9, None, 0.2, -0.5]))
    assert drawn(page) == ["1.png", "0.png", "3.png", "4.png"]
    assert re.findall("<h2>(.*?)</h2>", page) == ["Scores", "All images, the best first", "The other images"]


def test_of_many_images_the_ends_and_the_middle_are_drawn_and_the_rest_is_listed(tmp_path: Path) -> None:
    count = 301
    page = write(tmp_path, make_report([float(count - index) for index in range(count)]))
    middle = range((count - MIDDLE) // 2, (count + MIDDLE) // 2)
    wanted = [*range(ENDS), *middle, *range(count - ENDS, count)]
    assert drawn(page) == [f"{index}.png" for index in wanted]
    listed = re.findall(r"<tr><th>(\d+)</th><td>.*?</td>\s*<td class=\"text\">(\d+).png", page)
    assert [(int(place), int(name)) for place, name in listed] == [
        (index + 1, index) for index in range(count) if index not in wanted
    ]
    assert "145 to 156 of 301" in text(page) and "278 to 301 of 301" in text(page)


@pytest.mark.parametrize("count", [2 * ENDS + MIDDLE, 2 * ENDS + MIDDLE + 1])
def test_no_image_is_drawn_twice_or_lost(tmp_path: Path, count: int) -> None:
    page = write(tmp_path, make_report([float(index) for index in range(count)]))
    listed = re.findall(r"<td class=\"text\">(\d+.png)", page)
    assert sorted([*drawn(page), *listed]) == sorted(f"{index}.png" for index in range(count))
    assert len(listed) == count - 2 * ENDS - MIDDLE


def test_a_page_of_ten_thousand_images_reads_few_one_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read() -> Tensor:
        nonlocal most
        image = torch.zeros(3, 300, 300)
        alive.add(image)
        most = max(most, len(alive))
        reads.append(0)
        return image

    reads: list[int] = []
    report = make_report([float(index % 977) for index in range(10_000)])
    pictures = [replace(picture, image=read, overlays={"heat": read}) for picture in report.pictures]
    page = write(tmp_path, replace(report, pictures=pictures))
    assert len(reads) == 2 * (2 * ENDS + MIDDLE)
    assert most <= 2
    assert page.count('<td class="text">') == 2 * LISTED
    assert "The first 2,000 of 9,940; the rest is in the files of scores." in text(page)
    assert len(page) < 2_000_000


def test_missed_words_are_struck_and_overlays_stand_beside(tmp_path: Path) -> None:
    page = write(tmp_path, rich_report())
    assert re.findall(r'<s class="missed"[^>]*>(.*?)</s>', page) == ["struck through", "two", "cats"]
    assert "two red cats" in text(page)
    card = page[page.index('<div class="views">') :]
    assert re.findall('alt="(.*?)"', card)[:3] == [
        "2.png: two red cats",
        "misalignment: two red cats",
        "implausibility: two red cats",
    ]
    plain = write(tmp_path, make_report([0.1]))
    assert "struck" not in plain and "yellow" not in plain


def test_long_prompts_are_cut_with_and_without_words(tmp_path: Path) -> None:
    prompt = "a castle and a moat, " * 1000
    long = replace(picture(0, 0.5), prompt=prompt)
    said = replace(long, words=[(word, index == 1) for index, word in enumerate(prompt.split())])
    tags = Tags(page := write(tmp_path, ScoreReport("Scores", COLUMNS[:1], [long, said])))
    assert tags.open == []
    assert page.count('<details class="long">') == 2
    assert all(len(attributes["alt"] or "") < 200 for tag, attributes in tags.seen if tag == "img")
    assert page.count('class="missed" title') == 2  # in the cut words and in all of them


def test_what_a_user_wrote_is_escaped(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    shown = ScoredPicture(attack, attack, square(0.5), {attack: 0.1}, {attack: square(0.2)}, [(attack, True)])
    many = [replace(shown, words=()) for _ in range(2 * ENDS + MIDDLE + 1)]
    nothing = replace(shown, scores={attack: None})
    page = write(tmp_path, ScoreReport(attack, [attack], [shown, *many, nothing], [(attack, attack)]))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 100
    assert Tags(page).open == []


def test_rank_agreement_is_the_correlation_of_the_ranks_where_both_have_scores() -> None:
    generator = np.random.default_rng(0)
    one, noise = generator.permutation(40), generator.permutation(40)
    other = one + 1.01 * noise  # no ties, so that ranks are positions
    pictures = [picture(index, float(x), float(y)) for index, (x, y) in enumerate(zip(one, other, strict=True))]
    alone = [picture(40, 1000.0, None), picture(41, None, -1000.0)]
    table = rank_agreement(ScoreReport("Scores", COLUMNS, [*pictures, *alone]))
    gaps = one.argsort().argsort() - other.argsort().argsort()
    wanted = 1 - 6 * float((gaps**2).sum()) / (40 * (40**2 - 1))
    assert 0.5 < wanted < 0.9
    assert table == [[pytest.approx(1.0), pytest.approx(wanted)], [pytest.approx(wanted), pytest.approx(1.0)]]


@pytest.mark.parametrize("pairs", [[(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)], [(1.0, None), (None, 2.0)]])
def test_agreement_without_a_meaning_is_left_out(
    tmp_path: Path, pairs: list[tuple[float | None, float | None]]
) -> None:
    report = ScoreReport("Scores", COLUMNS, [picture(index, *pair) for index, pair in enumerate(pairs)])
    assert rank_agreement(report)[0][1] is None
    assert Tags(write(tmp_path, report)).open == []


def test_where_no_score_is_finite_the_page_says_so(tmp_path: Path) -> None:
    page = text(write(tmp_path, make_report([None, None])))
    assert "No image has a finite score." in page and "no finite score" in page
    assert "2 without a score by hps-v2.1 overall" in page


@pytest.mark.parametrize("report", [make_report([]), make_report([0.1], [])], ids=["images", "columns"])
def test_a_page_of_nothing_is_refused(tmp_path: Path, report: ScoreReport) -> None:
    with pytest.raises(ValueError, match="needs at least one of each"):
        write_score_report(tmp_path / "page.html", report)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_read_leaves_no_half_page(tmp_path: Path) -> None:
    def broken() -> Tensor:
        raise ValueError("a.png is damaged")

    report = make_report([0.1])
    with pytest.raises(ValueError, match="a.png is damaged"):
        write(tmp_path, replace(report, pictures=[replace(report.pictures[0], image=broken)]))
    assert list(tmp_path.iterdir()) == []


def test_names_and_reasons_are_told_apart(tmp_path: Path) -> None:
    skipped = [(f"{index}.gif", "an animated GIF") for index in range(3)]
    page = html.unescape(write(tmp_path, replace(make_report([0.1]), skipped=skipped)))
    assert re.findall("<th>(.*?)</th><td>(.*?)</td>", page)[-3:] == skipped
