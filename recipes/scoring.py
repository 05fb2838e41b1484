"""How a reward is called on many images: threads read and preprocess ahead of it, and batches fit the memory."""

import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recipes.critiques import Critiques
from recipes.images import FOREIGN, Item
from recipes.score_file import Key, Scores
from rewards.base import Critic, Reward

AUTOMATIC_BATCH = 64
"""Images at once where the user says nothing, halved as often as the memory asks for it."""
THREADS = 4
AHEAD = 2
"""Batches that are read while one is scored."""
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What allocators say that have no error of their own."""

Problems = dict[str, str]
"""What cannot be scored: the image's name and the reason."""
Read = tuple[Item, Tensor | None]


@dataclass
class Engine:
    """A reward and how it is called.

    Attributes:
        name: On the command line.
        reward: What scores.
        device: Where it is.
        batch_size: Images at once; None begins with `AUTOMATIC_BATCH` and halves it where the memory is too small.
        problems: What cannot be scored is added here, and told once.
        critiques: Where maps and words are kept, if they are wanted.
    """

    name: str
    reward: Reward
    device: torch.device
    batch_size: int | None = None
    problems: Problems = field(default_factory=dict[str, str])
    critiques: Critiques | None = None
    _fits: int = field(default=AUTOMATIC_BATCH, init=False)
    _has_scored: bool = field(default=False, init=False)

    @property
    def size(self) -> int:
        """Images of a batch."""
        return self.batch_size or AUTOMATIC_BATCH

    def is_done(self, item: Item, known: Mapping[Key, Sequence[float]]) -> bool:
        """Whether nothing is left to do for an image."""
        return item.key in known and (self.critiques is None or self.critiques.has(item))

    def left(self, batch: Sequence[Item], known: Mapping[Key, Sequence[float]]) -> Sequence[Item]:
        """What of a batch is to be scored: generated images all together, so that a resumed run has the same bits."""
        missing = [item for item in batch if not self.is_done(item, known)]
        return missing if all(item.key[1] == FOREIGN for item in batch) or not missing else batch

    def scores(self, batches: Sequence[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Scores]]:
        """Each batch with the scores of those of its images that have any."""
        with ThreadPoolExecutor(THREADS) as pool, self._remembering(batches):
            waiting: deque[tuple[Sequence[Item], list[Future[Read]]]] = deque()
            for batch in batches:
                waiting.append((batch, [pool.submit(self._read, item) for item in batch]))
                if len(waiting) > AHEAD:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())

    def _remembering(self, batches: Sequence[Sequence[Item]]) -> AbstractContextManager[None]:
        """Prompts of images of any origin are read once; generated ones must have the bits of a run without a stop."""
        is_foreign = any(item.key[1] == FOREIGN for batch in batches[:1] for item in batch)
        return self.reward.remembering_prompts() if is_foreign else nullcontext()

    def _read(self, item: Item) -> Read:
        """What the reward is given of an image, in a thread; None where it cannot be read."""
        try:
            image = item.image()
            with torch.no_grad():
                return item, image if self.critiques is not None else self.reward.prepare(image)
        except (ValueError, OSError) as error:
            self._tell(item, str(error))
            return item, None

    def _finish(self, batch: Sequence[Item], reading: Sequence[Future[Read]]) -> tuple[Sequence[Item], Scores]:
        read = [future.result() for future in reading]
        whole = [(item, tensor) for item, tensor in read if tensor is not None]
        found: Scores = {}
        position = 0
        while position < len(whole):
            part = whole[position : position + (self.batch_size or self._fits)]
            try:
                found |= self._score(part)
            except RuntimeError as error:
                self._shrink(error, len(part))
                continue
            position += len(part)
        return batch, found

    def _score(self, part: Sequence[tuple[Item, Tensor]]) -> Scores:
        """The finite scores of images that are given to the reward at once or, where it refuses, one by one.

        Where it refuses all of several from the start, the mistake is not in the images.
        """
        outcomes = [self._try(part)]
        if len(part) > 1 and isinstance(outcomes[0], ValueError):
            error, outcomes = outcomes[0], [self._try([one]) for one in part]
            if not self._has_scored:
                raise error
        for (item, _), outcome in zip(part, outcomes, strict=False):
            if isinstance(outcome, ValueError):
                self._tell(item, f"{self.name}: {outcome}")
        return {key: values for found in outcomes if isinstance(found, dict) for key, values in found.items()}

    def _try(self, part: Sequence[tuple[Item, Tensor]]) -> Scores | ValueError:
        """The finite scores of images, or why the reward refuses them."""
        try:
            values: Any = self._call(part)
        except ValueError as error:
            return error
        expected = (len(part), len(self.reward.dimensions))
        if not isinstance(values, Tensor) or tuple(values.shape) != expected:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{self.name} gave scores of shape {shape} where (images, dimensions) are {expected}. Mend it."
            )
        self._has_scored = True
        return self._finite(dict(zip([item for item, _ in part], values.float().tolist(), strict=True)))

    @torch.no_grad()
    def _call(self, part: Sequence[tuple[Item, Tensor]]) -> Float[Tensor, "image dimension"]:
        prompts, tensors = [item.text for item, _ in part], [tensor.to(self.device) for _, tensor in part]
        if self.critiques is None:
            return self.reward.score_prepared(tensors, prompts)
        assert isinstance(self.reward, Critic)
        same_size = len({tensor.shape for tensor in tensors}) == 1
        critique = self.reward.critique(torch.stack(tensors) if same_size else tensors, prompts)
        self.critiques.write([item for item, _ in part], tensors, critique)
        return critique.scores

    def _finite(self, scores: Mapping[Item, list[float]]) -> Scores:
        """The scores that are numbers; of the others the image is named."""
        for item, values in scores.items():
            if not all(map(math.isfinite, values)):
                said = dict(zip(self.reward.dimensions, values, strict=True))
                self._tell(item, f"{self.name} gave {said}; scores must be finite")
        return {item.key: values for item, values in scores.items() if all(map(math.isfinite, values))}

    def _tell(self, item: Item, reason: str) -> None:
        if item.name not in self.problems:
            self.problems[item.name] = reason
            print(f"not scored: {item.name}: {reason}", file=sys.stderr)

    def _shrink(self, error: RuntimeError, count: int) -> None:
        """Go on with smaller parts where the memory was too small; any other error goes its way."""
        if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in NO_MEMORY)):
            raise error
        if self.batch_size is not None or count == 1:
            raise ValueError(
                f"{self.name} has no memory for {count} images at once on {self.device}. Give a smaller --batch_size, "
                "or leave it out to have it found."
            ) from error
        self._fits = max(1, count // 2)
        print(f"{self.name}: no memory for {count} images at once; going on with {self._fits}.", file=sys.stderr)
