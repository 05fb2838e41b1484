"""What a network has read of prompts, so that each is read once while many images are scored."""

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

BYTES = 2**28
"""Kept at most, of one network: some 65,000 prompts of a CLIP, some 800 where every token is kept."""


@final
class PromptMemory:
    """Rows of features by their prompts, kept while the memory is open; the least recently used go first.

    Closed, or where gradients are on, it keeps and gives nothing: features of another state of the network would be
    wrong, and a graph can be walked back once only.
    """

    def __init__(self, size: int = BYTES) -> None:
        self._size = size
        self._rows: OrderedDict[str, Tensor] | None = None

    @contextmanager
    def open(self) -> Generator[None, None, None]:
        """Keep what is read until the end of the block."""
        self._rows = OrderedDict()
        try:
            yield
        finally:
            self._rows = None

    def read(
        self, prompts: Sequence[str], encode: Callable[[list[str]], Float[Tensor, "text *row width"]]
    ) -> Float[Tensor, "batch *row width"]:
        """One row for each prompt. `encode` is called once, at most, with the different prompts that are not known."""
        unique = list(dict.fromkeys(prompts))
        if self._rows is None or torch.is_grad_enabled():
            encoded = encode(unique)
            places = {prompt: index for index, prompt in enumerate(unique)}
            return encoded[torch.tensor([places[prompt] for prompt in prompts], device=encoded.device)]
        known = {prompt: self._rows.pop(prompt) for prompt in unique if prompt in self._rows}
        if new := [prompt for prompt in unique if prompt not in known]:
            known |= {prompt: row.clone() for prompt, row in zip(new, encode(new), strict=True)}
        self._rows |= known
        self._forget()
        return torch.stack([known[prompt] for prompt in prompts])

    def _forget(self) -> None:
        assert self._rows is not None
        row = next(reversed(self._rows.values()))
        while len(self._rows) * row.nbytes > self._size:
            self._rows.popitem(last=False)
