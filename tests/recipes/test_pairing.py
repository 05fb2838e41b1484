"""Which images are compared: by seed, by number, by file, by order; and what is left over."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from recipes.pairing import Entry, pair


def made(prompts: Sequence[str], n: int, run_seed: int = 0) -> list[Entry]:
    """As `align generate` makes them: a seed depends on the run's seed, the prompt and the number."""
    return [
        Entry(f"00000/{prompt}-{number:04d}.png", prompt, number, 1000 * run_seed + 10 * ord(prompt[0]) + number)
        for prompt in prompts
        for number in range(n)
    ]


def foreign(*names: str, text: str = "a") -> list[Entry]:
    return [Entry(name, text) for name in names]


def names(first: Sequence[Entry], second: Sequence[Entry]) -> list[tuple[str, str]]:
    return [(first[one].name, second[other].name) for one, other in pair(first, second).pairs]


def test_generated_images_are_paired_by_prompt_number_and_seed_whatever_their_order() -> None:
    first = made("ab", 3)
    second = list(reversed(first))
    pairing = pair(first, second)
    assert pairing.tie == "seed" and pairing.same_seeds is True
    assert pairing.pairs == [(place, 5 - place) for place in range(6)]
    assert (pairing.prompts, pairing.groups) == (["a", "b"], [0, 0, 0, 1, 1, 1])
    assert (pairing.unpaired, pairing.uneven) == (([], []), 0)


def test_with_other_seeds_the_numbers_pair_and_that_is_told() -> None:
    pairing = pair(made("ab", 3), made("ab", 3, run_seed=1))
    assert (pairing.tie, pairing.same_seeds) == ("sample number", False)
    assert pairing.pairs == [(place, place) for place in range(6)]


def test_an_image_with_another_seed_than_the_rest_is_left_out() -> None:
    first = made("ab", 3)
    second = [*first[:4], replace(first[4], seed=7), first[5]]
    pairing = pair(first, second)
    assert pairing.tie == "seed" and pairing.same_seeds is True
    assert pairing.unpaired == ([4], [4])


def test_where_most_seeds_differ_they_decide_nothing() -> None:
    first = made("ab", 3)
    second = [*first[:2], *made("ab", 3, run_seed=1)[2:]]
    pairing = pair(first, second)
    assert (pairing.tie, pairing.same_seeds, len(pairing.pairs)) == ("sample number", False, 6)


def test_the_common_images_of_a_prompt_are_paired_and_the_rest_is_counted() -> None:
    first, second = made("ab", 4), [*made("a", 2), *made("bc", 4)]
    pairing = pair(first, second)
    assert pairing.groups == [0, 0, 1, 1, 1, 1]
    assert pairing.unpaired == ([2, 3], [6, 7, 8, 9])
    assert pairing.uneven == 1


def test_of_images_made_elsewhere_files_of_one_name_pair_within_their_prompt() -> None:
    first = [*foreign("x/1.png", "x/2.png"), *foreign("y/1.png", text="b")]
    second = [*foreign("y/1.jpg", text="b"), *foreign("x/2.jpg", "x/1.jpg")]
    assert pair(first, second).tie == "file"
    assert names(first, second) == [("x/1.png", "x/1.jpg"), ("x/2.png", "x/2.jpg"), ("y/1.png", "y/1.jpg")]
    assert pair(first, second).same_seeds is None


def test_in_other_folders_the_name_alone_pairs() -> None:
    first, second = foreign("one/1.png", "one/2.png"), foreign("2.png", "1.png")
    assert pair(first, second).tie == "file name"
    assert names(first, second) == [("one/1.png", "1.png"), ("one/2.png", "2.png")]


def test_a_name_that_two_images_of_a_prompt_share_pairs_nothing() -> None:
    first, second = foreign("x/1.png", "y/1.png"), foreign("v/1.png", "w/1.png")
    assert pair(first, second).tie == "order"
    assert names(first, second) == [("x/1.png", "v/1.png"), ("y/1.png", "w/1.png")]


def test_without_a_name_in_common_the_order_within_the_prompt_pairs() -> None:
    first = [*foreign("a.png", "b.png"), *foreign("c.png", text="b")]
    second = [*foreign("u.png", text="b"), *foreign("v.png", "w.png", "x.png")]
    pairing = pair(first, second)
    assert pairing.tie == "order"
    assert names(first, second) == [("a.png", "v.png"), ("b.png", "w.png"), ("c.png", "u.png")]
    assert (pairing.unpaired, pairing.uneven) == (([], [3]), 1)


def test_one_file_that_happens_to_be_called_alike_decides_nothing() -> None:
    first, second = foreign("a.png", "b.png", "cover.png"), foreign("cover.png", "x.png", "y.png")
    assert pair(first, second).tie == "order"


def test_generated_images_pair_with_others_by_name_or_order() -> None:
    first = made("a", 2)
    copies = foreign("a-0001.png", "a-0000.png")
    assert names(first, copies) == [("00000/a-0000.png", "a-0000.png"), ("00000/a-0001.png", "a-0001.png")]
    assert pair(first, foreign("x.png", "y.png")).pairs == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("second", "said"),
    [(made("cde", 2), "the second 3 prompts (one is 'c')"), ([], "the second 0 prompts, and none")],
    ids=["others", "none"],
)
def test_folders_without_a_common_prompt_are_refused(second: list[Entry], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        pair(made("ab", 2), second)
    assert "The first folder has 2 prompts (one is 'a')" in str(caught.value)
