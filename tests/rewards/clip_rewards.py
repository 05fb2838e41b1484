"""The rewards on CLIPs, converted from checkpoints: of the rule's weights in the golden sizes, and tiny random ones."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from rewards.aesthetic import HEAD, Aesthetic, make_head
from rewards.convert.clip import convert_aesthetic, convert_mps, convert_open_clip, convert_openai
from rewards.convert.layouts import Parts
from rewards.hps import HPS
from rewards.hps_v2 import HPSv2
from rewards.mps import FUSION, MPS
from rewards.mps_fusion import Fusion
from rewards.pickscore import PickScore
from rewards.weights import write_network
from tests.rewards import golden
from tests.rewards.tiny_clip import save_tiny_clip

CPU = torch.device("cpu")
ClipReward = HPS | HPSv2 | PickScore | Aesthetic | MPS

OPENAI = Parts(vision_heads=1, text_heads=1)
OPEN_CLIP = Parts(vision_heads=4, text_heads=2)
MPS_FUSION = {"layers": 2, "heads": 2}
FULL_VOCABULARY = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def golden_reward(name: str, folder: Path, gains: Sequence[Any] | None = None, **options: Any) -> ClipReward:
    """A reward with the rule's weights, by the name of its golden run, read the way a user's checkpoint is."""
    layout = golden.checkpoint
    match name:
        case "hpsv1":
            write_network(folder, *convert_openai(layout("hpsv1_small", gains), OPENAI))
            return HPS(folder, CPU, **options)
        case "hpsv2":
            write_network(folder, *convert_open_clip(layout("hpsv2_small", gains), OPEN_CLIP))
            return HPSv2(folder, CPU, **options)
        case "pickscore":
            write_network(folder, *convert_open_clip(layout("pickscore_small", gains), OPEN_CLIP))
            return PickScore(folder, CPU, **options)
        case "laion":
            parts = replace(OPENAI, clip=layout("openai_clip_l14_small", gains))
            write_network(folder, *convert_aesthetic(layout("laion_head_small", gains), parts))
            return Aesthetic(folder, CPU, **options)
        case _:
            write_network(folder, *convert_mps(layout("mps_small", gains), OPEN_CLIP))
            return MPS(folder, CPU, **options)


def save_tiny_rewards(folder: Path) -> None:
    """Networks for the contract: `full-vocabulary`, `aesthetic` and `mps`. Cosines are not magnified."""
    for seed, name in enumerate(("full-vocabulary", "aesthetic", "mps"), start=2):
        save_tiny_clip(folder / name, seed=seed, text_cfg=FULL_VOCABULARY, init_logit_scale=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(make_head(16), folder / "aesthetic" / HEAD)
        _save(Fusion(16, **MPS_FUSION), folder / "mps" / FUSION)
    path = folder / "mps/open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fusion_cfg": MPS_FUSION}))


def _save(network: nn.Module, path: Path) -> None:
    save_file(network.state_dict(), path)
