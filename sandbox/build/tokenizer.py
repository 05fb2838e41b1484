"""One tokenizer for all models of the sandbox: CLIP's byte-level BPE, cut to the words of the grammar."""

from collections import Counter
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from sandbox.world import BACKGROUNDS, COLOURS, COUNTS, RADII_PX, RELATIONS, SHAPES

MAX_TOKENS = 32
"""The longest caption has 16 tokens with its two ends; the rest is room for a prefix like "Weird image. "."""


def build_tokenizer() -> CLIPTokenizer:
    """Every byte, every word of the grammar as one token, and the two special tokens, the end of text last."""
    letters = sorted(ByteLevel.alphabet())
    merges = _merges(words())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType]
        model_max_length=MAX_TOKENS,
    )


def save_tokenizer(folder: Path) -> int:
    """Write the tokenizer's files to a folder; returns the size of its vocabulary."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def words() -> list[str]:
    """Every word that a caption can hold."""
    phrases = [*RADII_PX, *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES), *COUNTS, *RELATIONS, *BACKGROUNDS]
    return list(dict.fromkeys(f"a on background {' '.join(phrases)}".split()))


def _merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding of the words until each is one token: merge the most frequent pair, the first of equals."""
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while any(len(piece) > 1 for piece in pieces):
        pairs = Counter(pair for piece in pieces for pair in zip(piece, piece[1:], strict=False))
        merges.append(max(pairs, key=lambda pair: pairs[pair]))
        pieces = [_merge(piece, merges[-1]) for piece in pieces]
    return merges


def _merge(piece: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in piece:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged
