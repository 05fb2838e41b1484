"""What the user reads of an error: words, and what to do."""

import errno
import os

import pytest

from recipes.errors import error_text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("The threshold keeps nothing."), "The threshold keeps nothing."),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a.txt"), "a.txt: No such file or directory."),
        (
            OSError("x.safetensors cannot be written (full). Make room."),
            "x.safetensors cannot be written (full). Make room.",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "No space left on device. Make room and run the same command again: it continues.",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/a.png"),
            "run/a.png: No space left on device. Make room and run the same command again: it continues.",
        ),
    ],
)
def test_an_error_is_words_and_what_to_do(error: ValueError | OSError, text: str) -> None:
    assert error_text(error) == text
