"""The page that compares two folders: self-contained, escaped, and saying what was compared."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.evaluate import Row
from align.report.comparison import NAMED, ComparisonReport, write_comparison
from align.report.page import Pair
from tests.pages import Tags, text

ROW = Row("hps-v2.1", "overall", 60, 0.5, 0.583, 0.083, 0.071, 0.095, 0.61)


def make_report() -> ComparisonReport:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    pair = Pair("a red circle", 7, image, image, 0.5, 0.75)
    return ComparisonReport(
        folders=("runs/one", "runs/two"),
        rows=[
            ROW,
            replace(ROW, reward="rahf", dimension="plausibility", difference=-0.01, ci_low=-0.02, ci_high=0.005),
        ],
        prompts=30,
        unit="prompts",
        pairs=[pair, replace(pair, prompt="a blue square", seed=None)],
        gained=[replace(pair, prompt="risen")],
        lost=[replace(pair, prompt="fallen", tuned_score=0.25)],
        changes={"hps-v2.1 overall": [0.1, -0.2, 0.3], "rahf plausibility": [0.0, 0.1]},
        notes=["The pairs share the prompt and the seed."],
        unpaired=(["one/a.png", "one/b.png"], []),
    )


def write(folder: Path, report: ComparisonReport) -> str:
    write_comparison(folder / "page.html", report)
    return (folder / "page.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    page = write(tmp_path, make_report())
    tags = Tags(page)
    assert tags.open == []
    sources = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert len(sources) == 8
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "http" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_page_says_the_numbers(tmp_path: Path) -> None:
    page = text(write(tmp_path, make_report()))
    for words in (
        "A runs/one B runs/two +0.083 hps-v2.1 overall",
        "B scores higher: 0.500 in A, 0.583 in B. 95% interval +0.071 to +0.095",
        "B wins 61% pairs 60 prompts 30",
        "bootstrap intervals over prompts",
        "rahf plausibility −0.010 −0.020 +0.005 0.500 0.583 61% 60",
        "The pairs share the prompt and the seed.",
        "2 images of A without a partner one/a.png, one/b.png",
        "A 0.500 B 0.750 +0.250 a red circle seed 7",
        "B gained most A 0.500 B 0.750 +0.250 risen",
        "B lost most A 0.500 B 0.250 −0.250 fallen",
    ):
        assert words in page, words
    assert "of B without a partner" not in page
    assert page.count("seed 7") == 3


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.2, "B scores higher"), (-0.2, -0.1, "B scores lower"), (-0.1, 0.1, "No clear difference")],
)
def test_verdict_is_that_of_the_interval(tmp_path: Path, low: float, high: float, words: str) -> None:
    report = replace(make_report(), rows=[replace(ROW, ci_low=low, ci_high=high)])
    assert f"{words}:" in text(write(tmp_path, report))


def test_missing_parts_leave_their_sections_out(tmp_path: Path) -> None:
    report = replace(make_report(), pairs=[], gained=[], lost=[], notes=[], unpaired=([], []))
    page = write(tmp_path, report)
    assert Tags(page).open == []
    assert re.findall("<h2>(.*?)</h2>", page) == ["Result", "Prompt by prompt"]


def test_where_nothing_fell_the_page_says_so(tmp_path: Path) -> None:
    assert "B lost most No prompt scored lower in B." in text(write(tmp_path, replace(make_report(), lost=[])))


def test_many_unpaired_images_are_counted_and_some_named(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(NAMED + 50)]
    page = text(write(tmp_path, replace(make_report(), unpaired=([], names))))
    assert f"{NAMED + 50} images of B without a partner 0.png," in page
    assert f"{NAMED - 1}.png and 50 more" in page


def test_what_a_user_wrote_is_escaped(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    report = make_report()
    pair = replace(report.pairs[0], prompt=attack)
    page = write(
        tmp_path,
        replace(
            report,
            folders=(attack, attack),
            rows=[replace(ROW, reward=attack, dimension=attack)],
            pairs=[pair],
            gained=[pair],
            lost=[pair],
            changes={attack: [0.1]},
            notes=[attack],
            unpaired=([attack], [attack]),
        ),
    )
    assert "<script" not in page
    # title 2, folders 2, headline 2, row 2, 3 pairs with 2 images, figure 1, note 1, unpaired 2
    assert page.count("&lt;script&gt;") == 21
    assert Tags(page).open == []


def test_a_comparison_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a row"):
        write_comparison(tmp_path / "page.html", replace(make_report(), rows=[]))
    assert list(tmp_path.iterdir()) == []
