"""Tokenizers of rewards: tiny ones, and BERT's and T5's cut down to the tokens of the golden prompts.

`tests/parity/tokens.json` holds those tokens by their published ids. Here every token of T5 is as likely as any other:
among so few, the shortest reading of a golden prompt is its best one.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import NFKC, BertNormalizer, Replace, Sequence
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing

TOKENS = Path(__file__).parents[1] / "parity/tokens.json"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"


def golden_bert() -> Tokenizer:
    """`bert-base-uncased` for the golden prompts, with the published ids."""
    known = _known("bert")
    return _bert({known.get(index, f"[filler {index}]"): index for index in range(30522)})


def golden_t5() -> Tokenizer:
    """`t5-base` for the golden prompts, with the published ids."""
    known = _known("t5")
    return _t5([(known.get(index, f"[filler {index}]"), -10.0) for index in range(32100)])


def tiny_bert() -> Tokenizer:
    """Each letter is a token."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return _bert({word: index for index, word in enumerate(words)})


def tiny_t5() -> Tokenizer:
    """Each letter is a token, and so is a space."""
    return _t5([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in "▁" + LETTERS)])


def _known(name: str) -> dict[int, str]:
    content = json.loads(TOKENS.read_text(encoding="utf-8"))[name]
    return {int(index): token for index, token in content.items()}


def _bert(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _t5(pieces: list[tuple[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<pad>", "</s>", "<unk>")])
    tokenizer.normalizer = Sequence([NFKC(), Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Metaspace()])
    tokenizer.decoder = MetaspaceDecoder()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
