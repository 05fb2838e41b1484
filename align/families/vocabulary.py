"""The words of a CLIP text encoder: those of its tokenizer, and learned ones with a vector each (arXiv 2208.01618)."""

import copy
import hashlib
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from align.model import LearnedToken


@final
class Vocabulary:
    """A tokenizer and the token embedding of its text encoder, which can be taught words and forget them again.

    The frozen table is neither copied nor changed. Words are added as diffusers adds those of a textual inversion.

    Attributes:
        tokenizer: As it is now, learned words included.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self._plain_tokenizer, self._plain_embedding = tokenizer, text_encoder.get_input_embeddings()
        self._text_encoder = text_encoder
        self._learned: dict[str, LearnedToken] = {}

    def add(self, token: str, start: str | Float[Tensor, " dim"]) -> LearnedToken:
        """See `TextToImage.add_token`."""
        self._check_new(token)
        table = self._plain_embedding.weight
        vector = self._mean_of(start) if isinstance(start, str) else start
        if vector.shape != table.shape[1:]:
            raise ValueError(
                f"The vector of {token!r} has {vector.numel()} numbers; those of this model's words have "
                f"{table.shape[1]}. It was learned for another model."
            )
        self._learned[token] = LearnedToken(vector.detach().to(table.device, torch.float32, copy=True))
        self._rebuild()
        return self._learned[token]

    def remove(self, token: str) -> None:
        """See `TextToImage.remove_token`."""
        if token not in self._learned:
            raise ValueError(f"{token!r} is no learned word; there are {', '.join(self._learned) or 'none'}.")
        del self._learned[token]
        self._rebuild()

    def digest(self) -> bytes:
        """A hash of the learned words and their vectors as they are now; empty where there are none."""
        digest = hashlib.blake2b(digest_size=8)
        for token, learned in sorted(self._learned.items()):
            digest.update(f"{token} ".encode() + learned.vector.detach().cpu().numpy().tobytes())
        return digest.digest() if self._learned else b""

    def _rebuild(self) -> None:
        """The plain tokenizer and embedding (a tokenizer cannot forget a word), and around them the learned words."""
        self.tokenizer, embedding = copy.deepcopy(self._plain_tokenizer), self._plain_embedding
        for token, learned in self._learned.items():
            self.tokenizer.add_tokens(token)
            embedding = _WithToken(embedding, self.tokenizer.convert_tokens_to_ids(token), learned)
        self._text_encoder.set_input_embeddings(embedding)

    def _check_new(self, token: str) -> None:
        if not token or "".join(token.split()) != token:
            raise ValueError(f"The word {token!r} must hold no white space, and at least one letter, like '<bad>'.")
        if token in self.tokenizer.get_vocab() or len(self.tokenizer.tokenize(token)) == 1:
            raise ValueError(
                f"{token!r} is a word of this model's tokenizer already. Take one that is not, like '<{token}>'."
            )

    @torch.no_grad()
    def _mean_of(self, words: str) -> Tensor:
        """The mean of the words' vectors, float32."""
        ids = self.tokenizer(words, add_special_tokens=False).input_ids
        if not ids:
            raise ValueError(f"The words to start from are {words!r}; there must be one at least, like 'ugly picture'.")
        embedding = self._text_encoder.get_input_embeddings()
        return embedding(torch.tensor(ids, device=self._plain_embedding.weight.device)).float().mean(0)


@final
class _WithToken(nn.Module):
    """A token embedding that knows one word more: `token_id` is looked up in `learned`, all else in `known`."""

    def __init__(self, known: nn.Module, token_id: int, learned: LearnedToken) -> None:
        super().__init__()
        self.known, self.token_id, self.learned = known, token_id, learned

    def forward(self, ids: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens dim"]:
        is_learned = ids == self.token_id
        rows: Tensor = self.known(ids.masked_fill(is_learned, 0))
        return torch.where(is_learned[..., None], self.learned.vector.to(rows.dtype), rows)
