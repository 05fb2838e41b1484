"""MPS, the multi-dimensional preference score: what an image is worth under a condition (arXiv 2405.14705)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from open_clip import CLIP
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rewards.clip import CONFIG, ClipReward, load_clip, promote, unit
from rewards.mps_fusion import Fusion, cast
from rewards.tokens import transformers_tokenizer

FUSION = "mps_fusion.safetensors"
FUSION_CONFIG = "fusion_cfg"
"""Entry of the folder's configuration: `layers` and `heads` of the fusion."""

CONDITIONS = MappingProxyType(
    {
        "overall": "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
        "structure, instance, texture, quantity, attributes, position, number, location, word, things.",
        "aesthetics": "light, color, clarity, tone, style, ambiance, artistry.",
        "detail": "shape, face, hair, hands, limbs, structure, instance, texture.",
        "alignment": "quantity, attributes, position, number, location.",
    }
)
"""The words that ask for a dimension. "overall" is the authors' own string; they published the words of the others (in
their paper), but not their punctuation."""


class Texts(NamedTuple):
    """A prompt or a condition as the network reads it.

    Attributes:
        tokens: Projected features of all positions, the padding's too.
        end: Projected features of the end of the text.
    """

    tokens: Float[Tensor, "text m width"]
    end: Float[Tensor, "text width"]


@final
class MPS(ClipReward):
    """The cosine between prompt and fused image, times the exponential of the logit scale: about 0 to 15.

    A condition lets through only the tokens of the prompt that are relevant to it: whose largest product with any token
    of the condition, divided by the largest of the prompt, is above `tau`. The authors' code divides by the largest of
    the whole batch; here a score does not depend on its batch, and equals theirs for one prompt at a time.

    The published weights were trained on overall preferences alone: the other dimensions then only change the mask.

    Arguments:
        weights: A folder with a CLIP in open_clip's format (see `rewards.clip.load_clip`), `fusion_cfg` in its
            configuration and the fusion's tensors in `FUSION`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.
        conditions: Dimensions and the words that ask for them; your own are welcome.
        tau: Below 1. The authors' evaluation has 0.3, their example for a pair of images 0.01.

    Raises:
        ValueError: A file that is missing, damaged, or not of this network; no conditions; a tau that masks everything.
    """

    dimensions = tuple(CONDITIONS)
    differentiable = True

    def __init__(
        self,
        weights: Path | str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        conditions: Mapping[str, str] = CONDITIONS,
        tau: float = 0.3,
    ) -> None:
        if not conditions or not tau < 1.0:
            raise ValueError(f"{len(conditions)} conditions and tau {tau} came; give one or more, and a tau below 1.")
        network = load_clip(Path(weights), device, dtype)
        tokenize = transformers_tokenizer(network.model.context_length)
        self.network = replace(network, tokenize=tokenize, image=replace(network.image, crop_rounds_down=True))
        width = network.model.get_parameter("text_projection").shape[1]
        self.fusion = cast(_load_fusion(Path(weights), width), device, dtype)
        self.dimensions = tuple(conditions)
        self._conditions = tuple(conditions.values())
        self._tau = tau

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch dimension"]:
        """How well each image does in every dimension; each image and each different text passes its tower once."""
        prompt, condition = self._read(prompts)
        image = image_tokens(self.network.model, self.network.cast(pixels))
        keep = relevance(prompt.tokens, condition.tokens) > self._tau
        fused = unit(self.fusion(image, prompt.tokens, keep))
        return self.network.scale * (fused * unit(prompt.end)[:, None]).sum(-1)

    def _read(self, prompts: Sequence[str]) -> tuple[Texts, Texts]:
        """The prompts, one a row, and the conditions."""
        rows = self.network.memory.read([*prompts, *self._conditions], self._encode)
        texts, count = Texts(rows[:, :-1], rows[:, -1]), len(prompts)
        return Texts(texts.tokens[:count], texts.end[:count]), Texts(texts.tokens[count:], texts.end[count:])

    def _encode(self, prompts: list[str]) -> Float[Tensor, "text m_and_end width"]:
        """All tokens of each text, and its end once more after them."""
        texts = encode_texts(self.network.model, self.network.tokenize(prompts).to(self.network.scale.device))
        return torch.cat([texts.tokens, texts.end[:, None]], dim=1)


def relevance(
    prompt: Float[Tensor, "batch m width"], condition: Float[Tensor, "dimension k width"]
) -> Float[Tensor, "batch dimension m"]:
    """How much a condition is about each token of a prompt, at most 1 in each row.

    The largest product with a token of the condition, divided by the row's largest.
    """
    products = torch.einsum("bmw,ckw->bcmk", promote(prompt), promote(condition)).amax(-1)
    return products / products.amax(-1, keepdim=True)


def encode_texts(model: CLIP, ids: Int[Tensor, "text m"]) -> Texts:
    """Every position of the text tower, projected; padding is encoded like words."""
    text: Any = model
    hidden = text.transformer(text.token_embedding(ids) + text.positional_embedding, attn_mask=text.attn_mask)
    tokens = text.ln_final(hidden) @ text.text_projection
    # The end of the text has the highest id; padding, the same, comes after it.
    return Texts(tokens, tokens[torch.arange(len(ids), device=ids.device), ids.argmax(-1)])


def image_tokens(model: CLIP, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch n width"]:
    """Every position of the image tower, the class token first, projected without the final normalisation."""
    visual: Any = model.visual
    found = visual.forward_intermediates(
        pixels, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    tokens = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
    return tokens @ visual.proj


def _load_fusion(folder: Path, width: int) -> Fusion:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    try:
        fusion = Fusion(width, **config[FUSION_CONFIG])
        fusion.load_state_dict(load_file(folder / FUSION))
    except (OSError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{folder} must hold {FUSION} and, in its {CONFIG}, the {FUSION_CONFIG} that describes it ({error!r}). "
            "Convert the checkpoint anew with `align convert`."
        ) from error
    return fusion.eval().requires_grad_(False)
