"""A tiny CLIP in open_clip's folder format: 32 x 32 pixels, random weights, real files."""

import json
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from safetensors.torch import save_file

from tests.tiny import MAX_TOKENS, tiny_tokenizer

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": MAX_TOKENS,
        "vocab_size": 514,
        "hf_tokenizer_name": "tiny",
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
STATISTICS: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def save_tiny_clip(folder: Path, seed: int = 0, resize_mode: str = "shortest", **model: Any) -> Path:
    """Write the network to `folder`, and return `folder`; `model` replaces entries of `model_cfg`."""
    folder.mkdir(parents=True)
    config = MODEL | model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIP(**config)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": STATISTICS | {"resize_mode": resize_mode}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if config["text_cfg"].get("hf_tokenizer_name"):
        tiny_tokenizer().save_pretrained(folder)
    return folder
