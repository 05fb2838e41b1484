"""The published rewards by their short names: which checkpoints they are made from, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from rewards.convert.clip import convert_aesthetic, convert_mps, convert_open_clip, convert_openai
from rewards.convert.image_reward import convert_image_reward
from rewards.convert.layouts import Files, Parts, Tensors
from rewards.convert.rahf import convert_rahf_port

LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "OpenAI's or open_clip's CLIP": "visual.conv1.weight",
        "a CLIP of transformers": "vision_model.embeddings.class_embedding",
        "MPS": "cross_model.layers.0.0.fn.to_q.weight",
        "ImageReward": "blip.visual_encoder.cls_token",
        "LAION's aesthetic head": "layers.0.weight",
        "the RAHF port": "visual_token_projection.weight",
    }
)
"""Layouts of checkpoints, each with a key that no other has."""
CLIPS = ("OpenAI's or open_clip's CLIP", "a CLIP of transformers")


@dataclass(frozen=True)
class Published:
    """How a reward is made.

    Attributes:
        convert: From the tensors to our files.
        layouts: Of the checkpoint.
        clip: Where the CLIP is published that has to be given, too.
        tokenizer: Where the tokenizer is published that has to be given, too.
    """

    convert: Callable[[Tensors, Parts], Files]
    layouts: tuple[str, ...]
    clip: str | None = None
    tokenizer: str | None = None


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "hps-v1": Published(convert_openai, CLIPS),
        "hps-v2": Published(convert_open_clip, CLIPS),
        "hps-v2.1": Published(convert_open_clip, CLIPS),
        "pickscore": Published(convert_open_clip, CLIPS),
        "mps": Published(convert_mps, ("MPS",)),
        "aesthetic": Published(
            convert_aesthetic,
            ("LAION's aesthetic head",),
            clip="model.safetensors of huggingface.co/openai/clip-vit-large-patch14",
        ),
        "image-reward": Published(
            convert_image_reward,
            ("ImageReward",),
            tokenizer="tokenizer.json of huggingface.co/google-bert/bert-base-uncased",
        ),
        "rahf-port": Published(
            convert_rahf_port,
            ("the RAHF port",),
            tokenizer="tokenizer.json of huggingface.co/google-t5/t5-base",
        ),
    }
)


def find_published(name: str) -> Published:
    """How the reward of that name is made.

    Raises:
        ValueError: An unknown name, with the nearest known ones.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=3, cutoff=0.4) or list(PUBLISHED)
        raise ValueError(f"No checkpoint is converted as {name!r}. Nearest names: {', '.join(near)}.")
    return PUBLISHED[name]


def recognise(tensors: Tensors, layouts: tuple[str, ...]) -> str:
    """Which of the layouts a checkpoint has.

    Raises:
        ValueError: None of them; it says what it is instead.
    """
    found = next((layout for layout, key in LAYOUTS.items() if key in tensors), None)
    if found in layouts:
        return found
    wanted = " or ".join(f"{layout} (with {LAYOUTS[layout]})" for layout in layouts)
    names = [name for name, published in PUBLISHED.items() if found in published.layouts]
    is_instead = (
        f"has the layout of {found}, which is converted as {' or '.join(names)}"
        if found
        else f"has {len(tensors)} tensors of no known layout ({', '.join(list(tensors)[:3])} ...)"
    )
    raise ValueError(f"The checkpoint must be {wanted}; it {is_instead}.")
