"""Words are cut as RichHF-18K cuts them, and marks are read from imperfect copies."""

import pytest

from rewards.rahf.words import mark_words, read_marks, split_words


def test_words_end_at_the_delimiters_of_the_data_set() -> None:
    prompt = 'A "red-hot" cat, isn\'t it? yes! (really): a;b/c ...'
    assert split_words(prompt) == ["A", "red-hot", "cat", "isn't", "it", "yes", "(really)", "a", "b/c"]
    assert split_words("") == []


def test_what_is_marked_is_read() -> None:
    words, misaligned = ["a", "red", "cat", "on", "a", "mat"], [False, True, False, False, True, True]
    assert mark_words(words, misaligned) == "a red_0 cat on a_0 mat_0"
    assert read_marks(words, mark_words(words, misaligned)) == misaligned


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", [False, False, False]),
        ("red_0 cat", [False, True, False]),  # a word left out
        ("a big_0 red cat_0", [False, False, True]),  # a word made up
        ("a rad_0 cat", [False, False, False]),  # a word changed
        ("a red_0, cat!_0", [False, True, True]),  # punctuation before and behind the mark
        ("Homepage Homepage", [False, False, False]),
    ],
)
def test_an_imperfect_copy_is_matched_by_its_words(written: str, expected: list[bool]) -> None:
    assert read_marks(["a", "red", "cat"], written) == expected
