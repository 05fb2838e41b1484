"""How far people agree among themselves, against people whose common truth is known."""

import numpy as np
import pytest
import torch

from recipes.agreement_table import CEILING, ONE_PERSON, table
from recipes.agreement_text import as_markdown, find
from rewards.agreement import Agreement
from rewards.datasets.rich_feedback import RichFeedback
from rewards.metrics import plcc
from rewards.rahf.network import HEATMAPS, SCORES


@pytest.mark.parametrize(("people", "noise"), [(2, 0.4), (3, 0.6), (5, 1.0)])
def test_the_ceiling_is_how_far_the_truth_agrees_with_the_mean_of_people(people: int, noise: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(2, 4, 3000)
    given = np.rint(truth[:, None] + generator.normal(0, noise, (3000, people))).clip(1, 5).astype(int)
    mean = given.mean(1)
    rows = [_row(number, mean[number], given[number].tolist()) for number in range(len(truth))]
    found = table({"truth": Agreement({"overall": truth}, {}, None)}, rows, 0, 100)
    reached, ceiling = find(found, "truth", "overall", "PLCC"), find(found, CEILING, "overall", "PLCC")
    assert reached and ceiling and ceiling.value == pytest.approx(reached.value, abs=0.015)
    one = find(found, ONE_PERSON, "overall", "PLCC")
    others = [plcc(given[:, place].astype(float), np.delete(given, place, 1).mean(1)) for place in range(people)]
    assert one and one.value == pytest.approx(np.mean(others)) and one.value < ceiling.value - 0.05


@pytest.mark.parametrize(
    ("raters", "chosen", "shown"),
    [
        ([1, *[3] * 8, 2], 3, "(on 8 of 10 images, all with the same number of annotators)."),
        ([0, *[2] * 4, *[3] * 4], 3, "(on 4 of 9 images,"),
        ([3, 3, *[2] * 6], 2, "(on 6 of 8 images,"),
        ([2] * 6, 2, ""),
    ],
)
def test_people_are_compared_where_most_often_as_many_said_something(
    raters: list[int], chosen: int, shown: str
) -> None:
    generator = np.random.default_rng(0)
    given = [generator.integers(1, 6, count).tolist() for count in raters]
    rows = [_row(number, float(np.mean([3, *one])), one) for number, one in enumerate(given)]
    truth = np.array([row.scores["overall"] for row in rows])
    found = table({"truth": Agreement({"overall": truth}, {}, None)}, rows, 0, 100)
    taken = np.array([one for one in given if len(one) == chosen], float)
    others = [plcc(taken[:, place], np.delete(taken, place, 1).mean(1)) for place in range(chosen)]
    one_person = find(found, ONE_PERSON, "overall", "PLCC")
    assert one_person and one_person.value == pytest.approx(np.mean(others))
    assert {one.n for one in found if one.reward in (ONE_PERSON, CEILING)} == {len(taken)}
    text = as_markdown(found)
    assert shown in text and text.count("the same number of annotators") == (2 if shown else 0)


def test_people_who_contradict_each_other_leave_nothing_to_reach() -> None:
    given = [[1, 5], [5, 1], [2, 4], [4, 2]]
    rows = [_row(number, 3.0 + number / 4, one) for number, one in enumerate(given)]
    found = table({"any": Agreement({"overall": np.arange(4.0)}, {}, None)}, rows, 0, 100)
    ceiling = find(found, CEILING, "overall", "PLCC")
    assert ceiling and ceiling.value == 0


def _row(number: int, mean: float, given: list[int]) -> RichFeedback:
    names: tuple[str, ...] = SCORES
    maps: tuple[str, ...] = HEATMAPS
    return RichFeedback(
        image_id=str(number),
        prompt=f"prompt {number // 2}",
        words=(),
        misaligned=(),
        scores=dict.fromkeys(names, (mean - 1) / 4),
        heatmaps={name: lambda: torch.zeros(1, 1) for name in maps},
        image=lambda: torch.zeros(3, 1, 1),
        ratings=tuple(dict.fromkeys(names, rating) for rating in given),
    )
