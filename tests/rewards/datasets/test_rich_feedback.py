"""What makes rich feedback good, and what becomes of bad rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.datasets.rich_feedback import Problem, RichFeedback, check, checked, decode_map


def _good(image_id: str = "one") -> RichFeedback:
    scores = {"plausibility": 0.0, "alignment": 1.0, "aesthetics": 0.5, "overall": 0.25}
    maps = {"implausibility": lambda: torch.zeros(6, 4), "misalignment": lambda: torch.ones(6, 4)}
    return RichFeedback(image_id, "a cat", ("a", "cat"), (False, True), scores, maps, lambda: torch.zeros(3, 9, 9))


def _maps(misalignment: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {**_good().heatmaps, "misalignment": lambda: misalignment}


def test_good_feedback_passes() -> None:
    check(_good())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"misaligned": (True,)}, r"one: 1 labels came for the 2 words \['a', 'cat'\]"),
        ({"words": (), "misaligned": ()}, "prompt has no words"),
        (
            {"scores": {"overall": 0.5}},
            r"scores are \['overall'\]; they must be \['aesthetics', 'alig",
        ),
        ({"scores": {**_good().scores, "overall": 4.0}}, "overall is 4.0; scores must be in"),
        ({"scores": {**_good().scores, "overall": float("nan")}}, "overall is nan"),
        ({"scores": {**_good().scores, "alignment": -0.01}}, "alignment is -0.01"),
        ({"heatmaps": {"implausibility": lambda: torch.zeros(2, 2)}}, r"heatmaps are \['implausibility'\]"),
        ({"heatmaps": _maps(torch.zeros(6, 5))}, r"sizes \[\(6, 4\), \(6, 5\)\]"),
        (
            {"heatmaps": _maps(torch.full((6, 4), 255.0))},
            "misalignment is empty or",
        ),
        (
            {"heatmaps": _maps(torch.full((6, 4), torch.nan))},
            "misalignment is empty",
        ),
        ({"heatmaps": dict.fromkeys(_good().heatmaps, lambda: torch.zeros(0, 4))}, "map of implausibility is empty"),
    ],
)
def test_feedback_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(replace(_good(), **change))


def _damaged() -> RichFeedback:
    raise ValueError("cannot be parsed.")


def test_bad_rows_are_left_out_and_named() -> None:
    problems: list[Problem] = []
    rows = [_good, _damaged, lambda: replace(_good("two"), misaligned=()), lambda: _good("three"), _good]
    found = list(checked([(f"row {n}", make) for n, make in enumerate(rows)], problems))
    assert [row.image_id for row in found] == ["one", "three"]
    assert [problem.row for problem in problems] == ["row 1", "row 2", "row 4"]
    assert [problem.fault.split(":")[0] for problem in problems] == ["cannot be parsed.", "two", "one"]
    assert "comes more than once" in problems[2].fault


def test_rows_are_made_one_at_a_time() -> None:
    made: list[int] = []

    def make(number: int) -> RichFeedback:
        made.append(number)
        return _good(str(number))

    rows = checked(((str(n), lambda n=n: make(n)) for n in range(10)), [])
    assert made == []
    assert [next(rows).image_id, next(rows).image_id] == ["0", "1"]
    assert made == [0, 1]


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_map_that_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded as PNG or JPEG"):
        decode_map(content)
