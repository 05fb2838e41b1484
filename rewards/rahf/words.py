"""Which words of a prompt an image misses, read from what RAHF writes: the prompt, bad words marked by `_0`."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

DELIMITERS = r'[,.?!":; ]'
MARK = "_0"


def split_words(prompt: str) -> list[str]:
    """The words that RichHF-18K labels: cut at commas, full stops, question and exclamation marks, double quotes,
    colons, semicolons and spaces; anything else belongs to a word."""
    return [word for word in re.split(DELIMITERS, prompt) if word]


def task_prompt(kind: str, name: str, prompt: str) -> str:
    """The prompt that asks a network of the augmented-prompt form for a "SCORE" or a "HEATMAP"."""
    return f"<output> {kind}: {name} </output> {prompt}"


def mark_words(words: Sequence[str], misaligned: Sequence[bool]) -> str:
    """The text that RAHF learns to write for labelled words."""
    return " ".join(word + MARK if bad else word for word, bad in zip(words, misaligned, strict=True))


def read_marks(words: list[str], written: str) -> list[bool]:
    """Whether each word is marked in a written text. A word that the text leaves out or changes counts as not marked.

    The longest common runs of words are matched, so that one lost word does not shift the marks of those behind it.
    """
    # A mark written behind punctuation ("red!_0") belongs to the word before it.
    marked = split_words(re.sub(rf"({DELIMITERS}+){MARK}(?={DELIMITERS}|$)", rf"{MARK}\1", written))
    plain = [word.removesuffix(MARK) for word in marked]
    misaligned = [False] * len(words)
    for block in SequenceMatcher(None, words, plain, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            misaligned[block.a + step] = marked[block.b + step].endswith(MARK)
    return misaligned
