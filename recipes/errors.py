"""What the user reads of an error."""

import errno


def error_text(error: ValueError | OSError) -> str:
    """What the user reads. An OSError's own text opens with a number that helps nobody."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    hint = " Make room and run the same command again: it continues." if error.errno == errno.ENOSPC else ""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}.{hint}"
