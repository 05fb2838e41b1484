"""Prompts as the token ids that RAHF reads and writes."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewards.rahf.network import PAD

Padded = tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]
"""Ids, and which of them are no padding."""

Tokenize = Callable[[Sequence[str]], Padded]


def padded(tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> Padded:
    """Token ids with the end of the text, never cut, padded to the longest."""
    rows = [torch.tensor(tokenizer.encode(text).ids, device=device) for text in texts]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=PAD), mask
