"""The report: self-contained, escaped, whole where parts are missing, and with figures that show the numbers."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from align.evaluate import RecoveredGap, Row
from align.report import figures
from align.report.page import Curve, Histogram, Pair, Report, data_uri, number, percent, signed, write_report
from align.select import Selection

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


class Tags(HTMLParser):
    """All tags of a page, with a check that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def write(folder: Path, report: Report) -> str:
    path = write_report(folder, report)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    page = write(tmp_path, make_report())
    tags = Tags(page)
    assert tags.open == []
    sources = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert len(sources) == 6
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
    report = make_report()
    report = replace(
        report,
        title=attack,
        settings={attack: attack},
        rows=[replace(ROW, reward=attack)],
        pairs=[replace(report.pairs[0], prompt=attack)],
        curves=[Curve(attack, [0.1, 0.2])],
    )
    page = write(tmp_path, report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
    assert Tags(page).open == []


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


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_small_images_are_kept_pixel_by_pixel() -> None:
    levels = torch.randint(0, 256, (3, 64, 48), generator=torch.Generator().manual_seed(0))
    uri = data_uri(levels / 255)
    assert uri.startswith("data:image/png")
    assert np.array_equal(np.asarray(decode(uri)), levels.permute(1, 2, 0).numpy())


def test_large_images_are_shrunk() -> None:
    uri = data_uri(torch.full((3, 1024, 768), 0.5))
    assert uri.startswith("data:image/webp")
    assert decode(uri).size == (384, 512)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000"),
        (0.0834, "0.083"),
        (-0.0834, "−0.083"),
        (21.5, "21.500"),
        (1234.5, "1,234.5"),
        (0.000412, "0.00041"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown
    assert signed(value) == (shown if value < 0 else f"+{shown}")


def test_percent() -> None:
    assert (percent(0.351), percent(-0.1), percent(1.2)) == ("35%", "−10%", "120%")


@pytest.mark.parametrize(
    ("tuned_mean", "worth"), [(0.5, 1.0), (0.58, 2.5), (0.62, 4.0), (0.4, None), (0.7, None), (None, None)]
)
def test_worth_of_a_tuned_sample(tuned_mean: float | None, worth: float | None) -> None:
    assert Curve("r", [0.5, 0.56, 0.6, 0.62], tuned_mean).worth == (worth and pytest.approx(worth))


def points(chart: str, kind: str) -> list[tuple[float, float]]:
    """The pixels of a polyline of a chart."""
    line = ElementTree.fromstring(chart).find(f"polyline[@class='{kind}']")
    assert line is not None
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]


def test_best_of_k_chart_is_logarithmic_in_k_and_higher_for_better() -> None:
    chart = figures.best_of_k_chart([0.1, 0.2, 0.3, 0.4], 0.2)
    (x1, y1), (x2, y2), (_, y3), (x4, y4) = points(chart, "curve")
    assert x2 - x1 == pytest.approx(x4 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2) == pytest.approx(y3 - y4, abs=0.2)
    assert y4 < y1  # pixels count downwards
    assert points(chart, "mark") == [(x1, y2), (x4, y2)]
    labels = [element.text for element in ElementTree.fromstring(chart).iter("text")]
    assert labels[:3] == ["1", "2", "4"]


def test_histogram_shows_shares() -> None:
    chart = ElementTree.fromstring(figures.histogram([0.0, 0.0, 0.0, 1.0], [1.0, 1.0], 0.5))
    numbers = [float(n) for n in re.findall(r"[\d.]+", chart.findall("path[@class='before']")[0].attrib["d"])]
    first = numbers[3] - numbers[1]
    numbers = [float(n) for n in re.findall(r"[\d.]+", chart.findall("path[@class='after']")[0].attrib["d"])]
    assert first / (numbers[3] - numbers[1]) == pytest.approx(0.75, abs=0.01)
    assert len(chart.findall("path[@class='before']")) == 2


def test_interval_lies_on_its_side_of_zero() -> None:
    for low, high, sign in ((0.1, 0.3, 1), (-0.3, -0.1, -1)):
        bar = ElementTree.fromstring(figures.interval(low, (low + high) / 2, high))
        dot = bar.find("circle")
        assert dot is not None and (float(dot.attrib["cx"]) - 60) * sign > 0


def test_loss_chart_is_thinned() -> None:
    chart = figures.loss_chart([(step, 1.0 + step % 2) for step in range(1, 10_001)])
    assert len(points(chart, "faint")) == len(points(chart, "curve")) == 200


@pytest.mark.parametrize("value", [0.0, 0.5, -1e-12, 1e6])
def test_figures_of_equal_values_are_drawn(value: float) -> None:
    for chart in (
        figures.best_of_k_chart([value], None),
        figures.best_of_k_chart([value] * 4, value),
        figures.loss_chart([(1, value)]),
        figures.loss_chart([(1, value), (2, value)]),
        figures.histogram([value] * 5, [], None),
        figures.interval(value, value, value),
    ):
        numbers = re.findall(r'"([^"]*)"', chart)
        assert not any("nan" in entry or "inf" in entry for entry in numbers)
        assert ElementTree.fromstring(chart).tag == "svg"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (22.1, 23.6), (-0.013, 0.002), (0.0, 40_000.0), (1e-7, 9e-7)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    marks = figures.ticks(low, high)
    step = marks[1] - marks[0]
    assert 2 <= len(marks) <= 6
    assert low - 1e-9 * step <= marks[0] and marks[-1] <= high + 1e-9 * step
    assert f"{step:.0e}"[0] in "125"
