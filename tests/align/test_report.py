"""The page of a run: self-contained, escaped, and whole where parts are missing."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.evaluate import RecoveredGap, Row
from align.report.page import (
    Curve,
    Grid,
    Histogram,
    Pair,
    Report,
    Series,
    write_report,
)
from align.select import Selection
from tests.pages import Tags, text

ROW = Row("sandbox-hps", "overall", 512, 0.5, 0.583, 0.083, 0.071, 0.095, 0.61)


def make_report(pairs: int = 3) -> Report:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Report(
        title="Filter and fine-tune",
        rows=[ROW, replace(ROW, reward="hold-out", difference=-0.01, ci_low=-0.02, ci_high=0.005)],
        pairs=[Pair(f"prompt {i}", 7 + i, images[0], images[1], 0.4, 0.6) for i in range(pairs)],
        settings={"learning_rate": 1e-4, "rewards": ["sandbox-hps"]},
        selected_by=["sandbox-hps"],
        recovered=RecoveredGap(0.2, 0.07, 0.35, 0.3, 0.4),
        curves=[Curve("sandbox-hps", [0.5, 0.56, 0.6, 0.62], 0.58)],
        selection=Selection(((0, 1), (2, 0)), 0.55, 3, 1),
        candidates=12,
        histograms=[Histogram("sandbox-hps", [0.1, 0.2, 0.5, 0.6], [0.6], 0.55)],
        truncated_prompts=2,
        losses=[(step, 1 / step) for step in range(1, 500)],
    )


def whole_report() -> Report:
    """With all that a run of several rounds has besides."""
    report = make_report()
    image, pair = report.pairs[0].base, report.pairs[0]
    return replace(
        report,
        rows=[replace(ROW, reward="diversity", dimension="dinov2", n=64, difference=-0.04, ci_low=-0.05, ci_high=-0.03)]
        + list(report.rows),
        curves=[Curve("sandbox-hps", [0.5, 0.56], 0.53, [0.48, 0.54], [0.52, 0.58])],
        grids=[Grid(step, [image, image]) for step in (0, 500, 1000)],
        grid_prompts=["a grid's first prompt", "a grid's second prompt"],
        validation=[Series("sandbox-hps.overall", [(0, 0.41), (500, 0.47), (1000, 0.52)])],
        improved=[replace(pair, prompt="risen", base_score=0.1, tuned_score=0.9)],
        damaged=[replace(pair, prompt="fallen", base_score=0.8, tuned_score=0.3)],
        rounds=[(1, replace(ROW, tuned_mean=0.54, difference=0.04, ci_low=0.03, ci_high=0.05)), (2, ROW)],
    )


def write(folder: Path, report: Report) -> str:
    path = write_report(folder, report)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("report", "images"), [(make_report(), 6), (whole_report(), 6 + 6 + 4)])
def test_page_is_well_formed_and_loads_nothing(tmp_path: Path, report: Report, images: int) -> None:
    page = write(tmp_path, report)
    tags = Tags(page)
    assert tags.open == []
    sources = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert len(sources) == images
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "http" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_page_says_the_numbers(tmp_path: Path) -> None:
    page = text(write(tmp_path, make_report()))
    for words in (
        "+0.083 sandbox-hps overall",
        "Better on held-out prompts: 0.500 before, 0.583 after. 95% interval +0.071 to +0.095",
        "61%",
        "of the best-of-n gap recovered (95% interval 30% to 40%) 35%",
        "−0.010 −0.020 +0.005",
        "sandbox-hps overall selected the training images",
        "One tuned sample is worth the best of 2.5 base samples.",
        "candidates of 3 prompts 12",
        "kept for training 2",
        "no candidate reached 0.550 1",
        "prompts cut at the tokenizer's limit 2",
        "learning_rate 0.0001",
    ):
        assert words in page, words
    assert page.count("selected the training images") == 1


def test_page_of_several_rounds_says_the_numbers(tmp_path: Path) -> None:
    page = text(write(tmp_path, whole_report()))
    for words in (
        "+0.083 sandbox-hps overall",
        "chosen by looking at the scores, unlike the pairs above",
        "Most improved before 0.100 after 0.900 +0.800 risen",
        "Most damaged before 0.800 after 0.300 −0.500 fallen",
        "a grid's first prompt base model step 500 step 1,000 a grid's second prompt base model step 500 step 1,000",
        "0 base model 0.500 1 0.540 +0.040 +0.030 +0.050 61% 2 0.583 +0.083 +0.071 +0.095 61%",
        "95% interval over prompts",
        "diversity dinov2 distance between the images of a prompt: they have become more alike −0.040",
        "there a pair is a prompt",
    ):
        assert words in page, words


@pytest.mark.parametrize(
    ("field", "heading"),
    [
        ("grids", "The same prompts while training"),
        ("validation", "Training"),
        ("improved", "Most improved and most damaged"),
        ("damaged", "Most improved and most damaged"),
        ("rounds", "Round by round"),
    ],
)
def test_each_part_is_shown_without_the_others(tmp_path: Path, field: str, heading: str) -> None:
    whole = whole_report()
    part: Mapping[str, Sequence[Any]] = {field: getattr(whole, field)}
    report = Report("Evaluate", [ROW], pairs=[], settings={}, grid_prompts=whole.grid_prompts, **part)
    page = write(tmp_path, report)
    assert Tags(page).open == []
    assert sorted(re.findall("<h2>(.*?)</h2>", page)) == sorted(["Result", heading, "Settings"])
    assert "the pairs above" not in page


def test_where_nothing_fell_the_page_says_so(tmp_path: Path) -> None:
    page = text(write(tmp_path, replace(whole_report(), damaged=[])))
    assert "Most damaged No prompt scored lower than before." in page


@pytest.mark.parametrize(("low", "high", "verdict"), [(-0.05, -0.03, "down"), (-0.05, 0.01, "unclear")])
def test_only_a_clear_fall_of_diversity_is_called_one(tmp_path: Path, low: float, high: float, verdict: str) -> None:
    row = replace(ROW, reward="diversity", difference=-0.02, ci_low=low, ci_high=high)
    page = write(tmp_path, Report("Evaluate", [ROW, row], [], {}))
    assert ("more alike" in page) == (verdict == "down")
    assert f'<td class="{verdict}"><b>−0.020</b></td>' in page


def test_diversity_alone_has_no_headline(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a result row of a reward"):
        write_report(tmp_path, Report("Evaluate", [replace(ROW, reward="diversity")], [], {}))


def test_grid_with_an_image_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="grid of step 0 came with 2 images and there are 1 prompts"):
        write_report(tmp_path, replace(whole_report(), grid_prompts=["a grid's first prompt"]))
    assert list(tmp_path.iterdir()) == []


def test_headline_comes_before_the_images_and_they_before_the_table(tmp_path: Path) -> None:
    page = write(tmp_path, make_report())
    assert page.index("+0.083") < page.index("<img") < page.index("<table")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 0.2, "Better"), (-0.2, -0.1, "Worse"), (-0.1, 0.1, "No clear change"), (0.0, 0.1, "No")],
)
def test_verdict_is_that_of_the_interval(tmp_path: Path, low: float, high: float, words: str) -> None:
    report = replace(make_report(), rows=[replace(ROW, ci_low=low, ci_high=high)])
    assert f"{words}" in text(write(tmp_path, report))


def test_what_a_user_wrote_is_escaped(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    report = whole_report()
    pair = replace(report.pairs[0], prompt=attack)
    report = replace(
        report,
        title=attack,
        settings={attack: attack},
        rows=[replace(ROW, reward=attack), replace(ROW, reward="diversity", dimension=attack)],
        pairs=[pair],
        curves=[Curve(attack, [0.1, 0.2])],
        histograms=[Histogram(attack, [0.1, 0.2], [0.2])],
        grid_prompts=[attack, attack],
        validation=[Series(attack, [(0, 0.1), (1, 0.2)])],
        improved=[pair],
        damaged=[pair],
    )
    page = write(tmp_path, report)
    assert "<script" not in page
    # title 2, settings 2, headline 1, rows 2, rounds 1, figures 3, 2 prompts of the grids with 3 images, 3 pairs with 2
    assert page.count("&lt;script&gt;") == 28
    assert Tags(page).open == []


@pytest.mark.parametrize("prompt", ["a <b>castle</b> & a moat, " * 1000, "x" * 30_000])
def test_long_prompts_are_cut_and_can_be_opened(tmp_path: Path, prompt: str) -> None:
    report = whole_report()
    pair = replace(report.pairs[0], prompt=prompt)
    page = write(tmp_path, replace(report, pairs=[pair], damaged=[pair], grid_prompts=[prompt, "short"]))
    tags = Tags(page)
    assert tags.open == []
    assert page.count(f"<div>{html.escape(prompt)}</div>") == 3
    assert all(len(attributes["alt"] or "") < 200 for tag, attributes in tags.seen if tag == "img")
    cut = re.findall('<details class="long"><summary>(.*?)</summary>', page)
    assert len(cut) == 3 and all(words.endswith("...") and len(html.unescape(words)) <= 160 for words in cut)


def test_missing_parts_leave_their_sections_out(tmp_path: Path) -> None:
    page = write(tmp_path, Report("Evaluate", [ROW], pairs=[], settings={}))
    assert Tags(page).open == []
    assert re.findall("<h2>(.*?)</h2>", page) == ["Result", "Settings"]
    assert "recovered" not in page


def test_gap_without_a_share_is_left_out(tmp_path: Path) -> None:
    page = write(tmp_path, replace(make_report(), recovered=RecoveredGap(-0.1, 0.1, None, None, None)))
    assert "recovered" not in page


def test_more_than_twelve_pairs_are_folded(tmp_path: Path) -> None:
    page = write(tmp_path, make_report(pairs=15))
    assert "<summary>3 more</summary>" in page
    assert re.findall("<figcaption>(prompt [0-9]+) ", page) == [f"prompt {i}" for i in range(15)]
    assert "more</summary>" not in write(tmp_path, make_report(pairs=12))


def test_report_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a result row"):
        write_report(tmp_path, Report("Evaluate", [], [], {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tuned_mean", "worth"), [(0.5, 1.0), (0.58, 2.5), (0.62, 4.0), (0.4, None), (0.7, None), (None, None)]
)
def test_worth_of_a_tuned_sample(tuned_mean: float | None, worth: float | None) -> None:
    assert Curve("r", [0.5, 0.56, 0.6, 0.62], tuned_mean).worth == (worth and pytest.approx(worth))
