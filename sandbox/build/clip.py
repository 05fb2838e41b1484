"""The sandbox's CLIP: trained on scenes and their captions, each beside captions and scenes that differ in one fact."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.swa_utils import update_bn

from align.log import Log
from align.train import TrainSettings, train
from rewards.clip import CONFIG, WEIGHTS
from sandbox.build.pictures import Pictures, to_bytes
from sandbox.build.tokenizer import MAX_TOKENS, build_tokenizer, save_tokenizer
from sandbox.world import (
    BACKGROUNDS,
    COUNTS,
    RELATIONS,
    SIZE_PX,
    Spec,
    Split,
    caption,
    lay_out,
    random_kind,
    render,
    sample_spec,
    split_of,
)

SETTLING_STEPS = 60
"""Batches from which the statistics of batch normalisation are measured."""
GROUP = 4
"""Captions that differ in one fact stand side by side in a batch, or the bag of words would be enough."""

FACTS = {"shape": 0.35, "size": 0.15, "colour": 0.15, "order": 0.25, "background": 0.1}
"""How often a change of a fact is tried (some change nothing, and are tried again); order is the relation, or the count
where there is none."""


def model_config() -> dict[str, object]:
    """The `model_cfg` of open_clip: a small ResNet, which sees outlines that patches of 8 pixels hide, and three layers
    of 96 channels for the text."""
    vision = {"image_size": SIZE_PX, "layers": [1, 1, 1, 1], "width": 12}
    text = {"context_length": MAX_TOKENS, "vocab_size": len(build_tokenizer()), "width": 96, "heads": 3, "layers": 3}
    return {"embed_dim": 96, "vision_cfg": vision, "text_cfg": text | {"hf_tokenizer_name": "tokenizer"}}


def new_clip() -> CLIP:
    """An untrained CLIP of 1.2 M parameters."""
    torch.manual_seed(0)
    return CLIP(**model_config())  # pyright: ignore[reportArgumentType]


def build_clip(folder: Path, accelerator: Accelerator, max_train_steps: int) -> CLIP:
    """Train the CLIP in `folder` (resumable)."""
    model = new_clip()
    pictures = draw_groups(6000, "train", seed=2)
    tokens = tokenize(pictures.captions)
    settings = TrainSettings(
        max_train_steps=max_train_steps,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        adam_beta2=0.98,
        adam_weight_decay=0.05,
        checkpointing_steps=100,
        seed=2,
    )

    def batch(step: int) -> tuple[Tensor, Tensor]:
        groups = np.random.default_rng((2, step)).choice(len(pictures) // GROUP, size=16, replace=False)
        indices = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
        return pictures.images(indices).to(accelerator.device), tokens[indices].to(accelerator.device)

    train(model.to(accelerator.device), batch, _contrastive_loss, settings, folder, Log(folder), accelerator)
    settle(model, lambda step: batch(step)[0])
    return model


def settle(model: CLIP, images: Callable[[int], Float[Tensor, "batch 3 64 64"]]) -> None:
    """Measure the statistics of batch normalisation anew, with the final weights: checkpoints hold parameters only."""
    update_bn((image_normalised(images(step)) for step in range(SETTLING_STEPS)), model.visual)


def _contrastive_loss(model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Float[Tensor, ""]:
    """Symmetric cross-entropy over the cosines of all pairs of a batch (arXiv 2103.00020, figure 3)."""
    del generator
    images, texts = batch
    image_features, text_features, scale = model(image_normalised(images), texts)
    logits = scale.clamp(max=100) * image_features @ text_features.T
    labels = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def image_normalised(images: Float[Tensor, "batch 3 64 64"]) -> Float[Tensor, "batch 3 64 64"]:
    """The preprocessing of the sandbox's CLIPs: [0, 1] to [-1, 1]."""
    return (images - 0.5) / 0.5


def tokenize(captions: list[str]) -> Int[Tensor, "batch 32"]:
    """Captions to padded token ids."""
    return build_tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]


def draw_groups(count: int, split: Split, seed: int) -> Pictures:
    """`count` groups of clean scenes, the first of a split and each other one different from it in one fact.

    In groups for training all are of the training split; few captions of another have enough neighbours in it.
    """
    generator = np.random.default_rng(seed)
    pixels = np.empty((count * GROUP, SIZE_PX, SIZE_PX, 3), np.uint8)
    captions: list[str] = []
    for _ in range(count):
        specs = [sample_spec(generator, split)]
        while len(specs) < GROUP:
            other = mutate(specs[0], generator)
            if other not in specs and (split != "train" or split_of(caption(other)) == "train"):
                specs.append(other)
        for spec in specs:
            pixels[len(captions)] = to_bytes(render(lay_out(spec, generator)))
            captions.append(caption(spec))
    return Pictures(pixels, captions)


def mutate(spec: Spec, generator: np.random.Generator) -> Spec:
    """A spec that differs in at most one fact; most often in a shape, the hardest to see, a relation or a count."""
    fact = str(generator.choice(list(FACTS), p=list(FACTS.values())))
    if fact == "background":
        return replace(spec, background=str(generator.choice(list(BACKGROUNDS))))
    if fact == "order" and spec.relation is not None:
        return replace(spec, relation=str(generator.choice(RELATIONS)))
    if fact == "order":
        return replace(spec, kinds=spec.kinds[:1] * int(generator.choice([1, *COUNTS.values()])))
    return with_other(fact, spec, generator)


def with_other(attribute: str, spec: Spec, generator: np.random.Generator) -> Spec:
    """A spec with another size, colour or shape of one of its kinds."""
    kinds = list(spec.kinds)
    index = int(generator.integers(len(kinds)))
    changed = replace(kinds[index], **{attribute: getattr(random_kind(generator), attribute)})
    return replace(
        spec, kinds=(changed,) * len(kinds) if spec.relation is None else (*kinds[:index], changed, *kinds[index + 1 :])
    )


def save_clip(model: CLIP, folder: Path) -> None:
    """Write a model in open_clip's folder format, weights in half precision, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": SIZE_PX,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": model_config(), "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, folder / WEIGHTS)
    save_tokenizer(folder)


@torch.no_grad()
def fact_accuracy(model: CLIP, pictures: Pictures) -> float:
    """Share of first scenes whose own caption scores highest among the captions of their group."""
    first = pictures.images(np.arange(0, len(pictures), GROUP))
    images = normalize(model.encode_image(image_normalised(first)), dim=-1)
    texts = normalize(model.encode_text(tokenize(pictures.captions)), dim=-1).unflatten(0, (-1, GROUP))
    return float((torch.einsum("gd,gnd->gn", images, texts).argmax(-1) == 0).float().mean())
