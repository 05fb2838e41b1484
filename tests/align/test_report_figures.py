"""The figures of the report show the numbers."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from align.evaluate import Row
from align.report import figures
from align.report.page import rounds_chart

ROW = Row("sandbox-hps", "overall", 512, 0.5, 0.583, 0.083, 0.071, 0.095, 0.61)


def points(chart: str, kind: str, tag: str = "polyline") -> list[tuple[float, float]]:
    """The pixels of a line of a chart."""
    line = ElementTree.fromstring(chart).find(f"{tag}[@class='{kind}']")
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


def test_band_runs_along_both_ends_of_the_intervals() -> None:
    means, lows, highs = [0.2, 0.3, 0.35], [0.1, 0.25, 0.3], [0.25, 0.32, 0.4]
    chart = figures.best_of_k_chart(means, None, lows, highs)
    (x1, y1), (x2, y2), (x3, y3) = points(chart, "curve")
    pixels = (y1 - y2) / 0.1
    edge = points(chart, "band", "polygon")
    assert [x for x, _ in edge] == [x1, x2, x3, x3, x2, x1]
    wanted = [y1 - 0.05 * pixels, y2 - 0.02 * pixels, y3 - 0.05 * pixels]
    wanted += [y3 + 0.05 * pixels, y2 + 0.05 * pixels, y1 + 0.1 * pixels]
    assert [y for _, y in edge] == pytest.approx(wanted, abs=0.3)
    assert "band" not in figures.best_of_k_chart(means, None)


def test_rounds_chart_starts_at_the_base_model_and_shows_the_intervals() -> None:
    first, second = (replace(ROW, tuned_mean=mean, ci_low=mean - 0.52, ci_high=mean - 0.49) for mean in (0.55, 0.6))
    chart = rounds_chart([(1, first), (2, second)])
    (x0, y0), (x1, y1), (x2, y2) = points(chart, "curve")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert {y for _, y in points(chart, "mark")} == {y0}
    pixels = (y0 - y2) / 0.1
    found = [
        [float(n) for n in re.findall(r"[\d.]+", path.attrib["d"])]
        for path in ElementTree.fromstring(chart).findall("path[@class='whisker']")
    ]
    assert found[0] == pytest.approx([x1, y1 + 0.02 * pixels, y1 - 0.01 * pixels], abs=0.3)
    assert found[1] == pytest.approx([x2, y2 + 0.02 * pixels, y2 - 0.01 * pixels], abs=0.3)
    labels = [element.text for element in ElementTree.fromstring(chart).iter("text")]
    assert labels[:3] == ["0", "1", "2"]


def test_series_chart_is_linear_in_steps_and_scores() -> None:
    chart = figures.series_chart([(0, 0.4), (100, 0.5), (300, 0.3)])
    (x0, y0), (x1, y1), (x2, y2) = points(chart, "curve")
    assert x2 - x0 == pytest.approx(3 * (x1 - x0), abs=0.3)
    assert y2 - y0 == pytest.approx(y0 - y1, abs=0.2)
    assert "0.4 at step 0, 0.3 at step 300" in chart


def test_steps_are_whole_numbers() -> None:
    for chart in (figures.series_chart([(1, 0.1), (2, 0.2)]), figures.loss_chart([(1, 0.1), (2, 0.2)])):
        assert [element.text for element in ElementTree.fromstring(chart).iter("text")][:3] == ["1", "2", "0.1"]


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


def test_distribution_is_the_share_of_the_values_and_marks_zero_where_it_is_among_them() -> None:
    chart = ElementTree.fromstring(figures.distribution([-1.0, -1.0, -1.0, 1.0], "difference", 0.0))
    low, high = (bar.attrib["d"] for bar in chart.findall("path[@class='after']"))
    heights = [float(y) - float(top) for top, y in (re.findall(r"M\S+ (\S+)H\S+V(\S+)H", d)[0] for d in (low, high))]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.3)
    (x, _), (end, _) = points(ElementTree.tostring(chart, encoding="unicode"), "mark")
    assert x == end == pytest.approx((figures.LEFT + figures.WIDTH - figures.RIGHT) / 2, abs=0.1)
    assert "difference" in [element.text for element in chart.iter("text")]
    assert "mark" not in figures.distribution([1.0, 2.0], "difference", 0.0)


def test_loss_chart_is_thinned() -> None:
    chart = figures.loss_chart([(step, 1.0 + step % 2) for step in range(1, 10_001)])
    assert len(points(chart, "faint")) == len(points(chart, "curve")) == 200


@pytest.mark.parametrize("value", [0.0, 0.5, -1e-12, 1e6])
def test_figures_of_equal_values_are_drawn(value: float) -> None:
    for chart in (
        figures.best_of_k_chart([value], None),
        figures.best_of_k_chart([value] * 4, value),
        figures.best_of_k_chart([value] * 4, value, [value] * 4, [value] * 4),
        figures.rounds_chart(value, [(1, value)], [(1, value)], [(1, value)]),
        figures.series_chart([(0, value)]),
        figures.series_chart([(0, value), (5, value)]),
        figures.loss_chart([(1, value)]),
        figures.loss_chart([(1, value), (2, value)]),
        figures.histogram([value] * 5, [], None),
        figures.distribution([value] * 5),
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
