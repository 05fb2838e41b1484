"""What `--model` may name: a folder, a repository on the Hub, or the model that ships."""

import difflib
from pathlib import Path

from sandbox.weights import WEIGHTS

SHIPPED = {"sandbox": WEIGHTS / "sd"}


def resolve_model(name: str) -> str:
    """The folder of a shipped model; any other folder or repository id as it is.

    Raises:
        ValueError: Neither a shipped model, nor a folder, nor the form of a repository id.
    """
    if name in SHIPPED:
        return str(SHIPPED[name])
    if not Path(name).exists() and name.count("/") != 1:
        near = difflib.get_close_matches(name, SHIPPED, 1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"The model {name!r} is neither a folder nor a repository id like owner/name, nor one that ships "
            f"({', '.join(SHIPPED)}).{hint}"
        )
    return name
