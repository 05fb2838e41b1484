"""CLIP's one vocabulary as three libraries read it: they differ in cleaning, in special words and in padding.

| | cleaning | `<|endoftext|>` in a prompt | padding |
|---|---|---|---|
| open_clip | ftfy, HTML entities, spaces, lower case | text | 0 |
| OpenAI's clip | the same | the end of the text | 0 |
| transformers' fast tokenizer | Unicode NFC, spaces, lower case | the end of the text | 49407 |

A reward's ids must be those of the library it was trained with. The vocabulary comes with open_clip.
"""

from collections.abc import Callable
from functools import cache

import regex
import torch
from jaxtyping import Int
from open_clip import SimpleTokenizer
from torch import Tensor
from transformers import CLIPTokenizer

Tokenize = Callable[[list[str]], Int[Tensor, "batch tokens"]]

START, END = "<|startoftext|>", "<|endoftext|>"


def openai_tokenizer(length: int) -> Tokenize:
    """The ids of OpenAI's `clip.tokenize(truncate=True)`, cut to `length`."""
    tokenizer = SimpleTokenizer(context_length=length)
    special = {START: tokenizer.sot_token_id, END: tokenizer.eot_token_id}
    tokenizer.encoder |= special
    tokenizer.cache |= {word: word for word in special}
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pat = regex.compile("|".join([*map(regex.escape, special), words]), regex.IGNORECASE)
    return tokenizer


def transformers_tokenizer(length: int) -> Tokenize:
    """The ids of transformers' fast CLIP tokenizer with `padding="max_length", truncation=True`.

    This is what `AutoTokenizer` and `AutoProcessor` give for a CLIP on the Hugging Face Hub.
    """

    def tokenize(prompts: list[str]) -> Int[Tensor, "batch tokens"]:
        encoded = _fast_tokenizer()(prompts, padding="max_length", truncation=True, max_length=length)
        return torch.tensor(encoded["input_ids"])

    return tokenize


@cache
def _fast_tokenizer() -> CLIPTokenizer:
    known = SimpleTokenizer()
    vocabulary = {known.decoder[index]: index for index in range(known.sot_token_id)}
    vocabulary |= {START: known.sot_token_id, END: known.eot_token_id}
    return CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks))  # pyright: ignore[reportArgumentType]
