"""Files that hold more than tensors: a pickled module, as MPS is published, and what runs code when it is read."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

PACKAGE = ("trainer", "trainer.models", "trainer.models.clip_model")
"""Of the authors' classes; nobody who reads the file has it."""


def save_module(state: Mapping[str, Tensor], path: Path) -> None:
    """Save a module that has this state dict, of a class that exists only meanwhile."""
    made: Any = ModuleType(PACKAGE[-1])
    made.CLIPModel = type("CLIPModel", (nn.Module,), {"__module__": PACKAGE[-1]})
    made.CLIPConfig = type("CLIPConfig", (), {"__module__": PACKAGE[-1]})
    sys.modules.update({name: ModuleType(name) for name in PACKAGE[:-1]} | {PACKAGE[-1]: made})
    try:
        torch.save(_build(made, state), path)
    finally:
        for name in PACKAGE:
            del sys.modules[name]


def _build(made: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """Buffers where the authors have them, and attributes that are neither tensors nor of torch."""
    root = made.CLIPModel()
    root.config, root.activation = made.CLIPConfig(), gelu
    root.config.sizes = {"width": 32}
    for key, tensor in state.items():
        *path, name = key.split(".")
        place = root
        for step in path:
            if step not in place._modules:
                place.add_module(step, made.CLIPModel())
            place = place.get_submodule(step)
        if name in ("position_ids", "inv_freq") or key.endswith(".norm.bias"):
            place.register_buffer(name, tensor)
            place.register_buffer("pos_emb", torch.zeros(2), persistent=False)
        else:
            place.register_parameter(name, nn.Parameter(tensor))
    return root


@final
class Bomb:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call
