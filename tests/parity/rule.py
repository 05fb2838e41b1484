"""Weights made by a rule: each tensor of a checkpoint is a function of its key and its shape.

Such a checkpoint was put into the authors' own code, which gave the scores in `golden.json`; ours must give the same.
They prove arithmetic and file formats, and say nothing about quality. The numbers are raw words of PCG64, covered by
numpy's stream-compatibility promise, and exact float32 arithmetic: the same bits on every machine.

`layouts/*.json` has each tensor's key, shape, dtype and kind. A kind is a scale: "matrix" has the standard deviation
1 / sqrt(fan in), "norm" is near 1, "bias" small. A salt is put in front of the key; gains are pairs of a regular
expression and a factor, of which the first that fits a key multiplies its tensor (not norms, biases and scales).
"""

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIED = re.compile(r"^(.*t5\.)(?:encoder\.embed_tokens|decoder\.embed_tokens|lm_head)\.weight$")
ROTARY_BITS = (
    1065353216, 1061157137, 1058010522, 1054337179, 1050798235, 1047712803, 1043732615, 1040747895,
    1036831949, 1033475085, 1030116802, 1026341397, 1023510243, 1019364175, 1016180025, 1012562930,
    1008981770, 1005959600, 1001931932, 998911607, 995049016, 991652109, 988353832, 984533390,
    981668463, 977573004, 974350870, 970790693, 967166816, 964208661, 960132947, 957076594,
)  # fmt: skip
"""Of MPS's rotary frequencies, as torch computes them in float32."""


def make_state_dict(layout: Path, gains: Sequence[Any] | None = None) -> dict[str, NDArray[Any]]:
    """The checkpoint of a layout; `gains` replace the layout's own."""
    content: Mapping[str, Any] = json.loads(layout.read_text(encoding="utf-8"))
    salt, factors = content.get("salt", ""), content.get("gains", []) if gains is None else gains
    return {
        key: _constant(key, shape) if kind == "keep" else _tensor(key, shape, kind, salt, factors).astype(dtype)
        for key, shape, dtype, kind in content["tensors"]
    }


def _tensor(key: str, shape: Sequence[int], kind: str, salt: str, gains: Sequence[Any]) -> NDArray[np.float32]:
    match = TIED.match(key)
    key, count = f"{match[1]}shared.weight" if match else key, math.prod(shape)
    if kind == "zero":
        return np.zeros(shape, np.float32)
    values = _unit(key, count, salt)
    if kind in ("scale", "norm", "bias"):
        start, width = {"scale": (4.25, 0.25), "norm": (1.0, 0.2), "bias": (0.0, 0.05)}[kind]
        return (np.float32(start) + np.float32(width) * values).reshape(shape)
    fan_in = max(1, count // shape[0])
    sd = {"embed": 0.5, "tok": 0.5, "t5emb": 1.0, "t5rel": 0.5, "t5q": 1.0 / math.sqrt(fan_in * 64.0)}
    gain = next((float(factor) for pattern, factor in gains if re.search(pattern, key)), 1.0)
    return (np.float32(sd.get(kind, 1.0 / math.sqrt(fan_in)) * gain * math.sqrt(3.0)) * values).reshape(shape)


def _unit(key: str, count: int, salt: str) -> NDArray[np.float32]:
    """Numbers in [-1, 1), multiples of 2**-23."""
    words = np.random.PCG64(zlib.crc32((salt + key).encode())).random_raw((count + 1) // 2)
    halves = words.astype("<u8", copy=False).view("<u4")[:count]  # the low half first
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def _constant(key: str, shape: Sequence[int]) -> NDArray[Any]:
    """The buffers that are what they are in every checkpoint."""
    if key.endswith("position_ids"):
        return np.arange(shape[-1], dtype=np.int64).reshape(shape)
    if key.endswith("inv_freq") and tuple(shape) == (32,):
        return np.array(ROTARY_BITS, np.uint32).view(np.float32)
    raise KeyError(key)
