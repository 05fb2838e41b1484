"""Prompts and seeds to images: batched, in shards, and continued where it was stopped."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from accelerate import Accelerator

from align.log import Log
from align.lora import merged
from align.model import Sampling, TextToImage
from align.samples import SampleRow, SampleStore, prompt_id


def image_seed(run_seed: int, prompt: str, sample_index: int) -> int:
    """The seed of an image: a hash of the run's seed, the prompt's id and the sample's index, below 2^53.

    It depends on nothing else, so an image keeps its seed in any batch, on any process, and for any model.
    """
    digest = hashlib.blake2b(f"{run_seed} {prompt} {sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 11


@final
class Alone:
    """A process that makes all images by itself, whatever was launched: the others may be elsewhere, or wait."""

    is_main_process, num_processes, process_index = True, 1, 0

    def wait_for_everyone(self) -> None:
        """There is nobody."""


def generate(
    model: TextToImage,
    prompts: Sequence[str],
    samples_per_prompt: int,
    folder: Path,
    seed: int,
    batch_size: int,
    sampling: Sampling,
    log: Log,
    accelerator: Accelerator | Alone,
    description: str = "generate",
) -> SampleStore:
    """Fill a sample store with `samples_per_prompt` images of each prompt; what is there already is kept.

    Micro-batches of `batch_size` are formed in the order of prompts and samples before anything is skipped or shared
    out, and one that lacks an image is made again as a whole. So a run that was killed and started again ends with the
    bytes of one that was not, with any number of processes.

    Arguments:
        model: What makes the images.
        prompts: In the order of the store; repeated ones count once.
        samples_per_prompt: Images of each prompt.
        folder: The store's folder, made if need be.
        seed: The run's seed; see `image_seed`.
        batch_size: Images the model makes at once. Another one changes an image by rounding at most.
        sampling: How images are drawn.
        log: Shows the progress, in images.
        accelerator: The processes that share the work, batch by batch; or `Alone`.
        description: What the progress is called.

    Raises:
        ValueError: No prompts, an empty one, numbers below 1, a folder of another experiment, or images that are not
            finite.
    """
    unique = tuple(dict.fromkeys(prompts))
    _check(unique, samples_per_prompt, batch_size)
    plan = _Plan(SampleStore(folder), model.fingerprint, unique, samples_per_prompt, seed)
    if accelerator.is_main_process:
        plan.store.claim(plan.record(sampling))
    accelerator.wait_for_everyone()  # nobody writes into a folder that may be refused
    shards = [shard for shard in plan.store.shards(plan.images) if not plan.store.is_sealed(shard.start)]
    done = plan.images - sum(map(len, shards))
    drawing = merged(model.denoiser) if shards else nullcontext()
    with drawing, log.progress(plan.images, description, initial=done) as progress:
        for shard in shards:
            rows = [plan.row(position) for position in shard]
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            for number, batch in enumerate(batches):
                if number % accelerator.num_processes == accelerator.process_index and not plan.store.has(batch):
                    _make(model, plan.store, batch, sampling)
                progress.update(len(batch))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                plan.store.seal(rows)
    accelerator.wait_for_everyone()
    return plan.store


@dataclass(frozen=True)
class _Plan:
    """Which image is where: the images of the first prompt, then of the second, and so on, cut into shards."""

    store: SampleStore
    model: str
    prompts: Sequence[str]
    samples_per_prompt: int
    seed: int

    @property
    def images(self) -> int:
        return len(self.prompts) * self.samples_per_prompt

    def row(self, position: int) -> SampleRow:
        prompt, index = divmod(position, self.samples_per_prompt)
        text = self.prompts[prompt]
        return self.store.row(position, text, index, image_seed(self.seed, prompt_id(text), index), self.model)

    def record(self, sampling: Sampling) -> dict[str, Any]:
        """All that decides the images, but for rounding."""
        return {
            "model": self.model,
            "images": self.images,
            "prompts": len(self.prompts),
            "prompts_digest": hashlib.blake2b("\0".join(self.prompts).encode(), digest_size=8).hexdigest(),
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
            **asdict(sampling),
        }


def _make(model: TextToImage, store: SampleStore, batch: Sequence[SampleRow], sampling: Sampling) -> None:
    images = model.sample([row.text for row in batch], [row.seed for row in batch], sampling)
    if not torch.isfinite(images).all():
        raise ValueError(
            f"The model gave pixels that are not finite, among the images of {batch[0].text!r} to {batch[-1].text!r}. "
            "Half precision overflows in some models: use bf16 or float32 (mixed_precision no)."
        )
    store.write(batch, images)


def _check(prompts: Sequence[str], samples_per_prompt: int, batch_size: int) -> None:
    if not prompts:
        raise ValueError("There are no prompts; generating needs at least one.")
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("One of the prompts is empty; each must say something. Remove the empty lines.")
    if samples_per_prompt < 1:
        raise ValueError(f"samples_per_prompt is {samples_per_prompt}; it must be at least 1.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
