"""The sandbox's CLIP: trained on scenes and their captions, each beside captions and scenes that differ in one fact."""

import json
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

GROUP = 4
"""Captions that differ in one fact stand side by side in a batch, or the bag of words would be enough."""


def model_config() -> dict[str, object]:
    """The `model_cfg` of open_clip: two towers of 96 channels, 64 patches of 8 pixels."""
    vision = {"image_size": SIZE_PX, "layers": 4, "width": 96, "patch_size": 8, "head_width": 32}
    text = {"context_length": MAX_TOKENS, "vocab_size": len(build_tokenizer()), "width": 96, "heads": 3, "layers": 3}
    return {"embed_dim": 96, "vision_cfg": vision, "text_cfg": text | {"hf_tokenizer_name": "tokenizer"}}


def new_clip() -> CLIP:
    """An untrained CLIP of 1.7 M parameters."""
    torch.manual_seed(0)
    return CLIP(**model_config())  # pyright: ignore[reportArgumentType]


def build_clip(folder: Path, accelerator: Accelerator, max_train_steps: int = 2500) -> CLIP:
    """Train the CLIP in `folder` (resumable)."""
    model = new_clip()
    pictures = draw_groups(6000, "train", seed=2)
    tokens = tokenize(pictures.captions)
    settings = TrainSettings(
        max_train_steps=max_train_steps,
        learning_rate=7e-4,
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
    return model


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
    """A spec that differs in one fact: a kind, the background, the relation or the count."""
    what = generator.integers(4)
    if what == 0:
        return replace(spec, background=str(generator.choice(list(BACKGROUNDS))))
    if what == 1 and spec.relation is not None:
        return replace(spec, relation=str(generator.choice(RELATIONS)))
    if what == 1:
        return replace(spec, kinds=spec.kinds[:1] * int(generator.choice([1, *COUNTS.values()])))
    return _with_other_kind(spec, generator)


def _with_other_kind(spec: Spec, generator: np.random.Generator) -> Spec:
    attribute = str(generator.choice(["size", "colour", "shape"]))
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
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    save_tokenizer(folder)


@torch.no_grad()
def fact_accuracy(model: CLIP, pictures: Pictures) -> float:
    """Share of first scenes whose own caption scores highest among the captions of their group."""
    first = pictures.images(np.arange(0, len(pictures), GROUP))
    images = normalize(model.encode_image(image_normalised(first)), dim=-1)
    texts = normalize(model.encode_text(tokenize(pictures.captions)), dim=-1).unflatten(0, (-1, GROUP))
    return float((torch.einsum("gd,gnd->gn", images, texts).argmax(-1) == 0).float().mean())
