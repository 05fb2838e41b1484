"""ImageReward: a BLIP that reads image and prompt together, and a head that scores what it read (arXiv 2304.05977)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from rewards.base import PixelReward
from rewards.image import crop_shortest, normalise
from rewards.weights import TOKENIZER, load_tokenizer, load_weights, read_config

MEAN, SD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores of the authors' training data; published scores are standardised by them."""

MAX_TOKENS = 35
PADDING = 0
# The authors appended these to BERT's vocabulary. The text still starts with [CLS], but a prompt may spell them out.
ADDED_TOKENS: tuple[str, ...] = ("[DEC]", "[ENC]")


@dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes; the defaults are the published ones (BLIP-large). Widths are in channels, the image in pixels."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    vocabulary: int = 30524
    positions: int = 512


@final
class ImageRewardNetwork(nn.Module):
    """Pixels and token ids in, raw scores out: a vision transformer, BERT that attends to it, and a linear head."""

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(_vision_config(config))
        self.text = BlipTextModel(_text_config(config), add_pooling_layer=False)
        # The published head has no activations between its layers.
        self.head = nn.Sequential(
            nn.Linear(config.text_width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 size size"],
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, " batch"]:
        """The head's reading of [CLS], which attends to the tokens where the mask is true, and to the image."""
        seen = self.vision(pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=seen)
        return self.head(read.last_hidden_state[:, 0])[:, 0]


@final
class ImageReward(PixelReward):
    """The score of Xu et al. (arXiv 2304.05977), standardised as published: about -2 to 2, mean 0 on their data.

    Arguments:
        weights: A folder with `config.json` (see `ImageRewardConfig`), `model.safetensors`, and `tokenizer.json` of
            `bert-base-uncased`. `align convert` makes it from the authors' file.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.

    Raises:
        ValueError: A missing or damaged file, or files that do not belong together.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        folder = Path(weights)
        self.config = read_config(folder, ImageRewardConfig)
        network = ImageRewardNetwork(self.config)
        load_weights(network, folder)
        self.network = network.eval().requires_grad_(False).to(device, dtype)
        self.tokenizer = read_tokenizer(folder / TOKENIZER, self.config.vocabulary)
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding(pad_id=PADDING, length=MAX_TOKENS)

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        """Shorter side to the network's size (bicubic, 8-bit rounding), centre crop, and CLIP's normalisation."""
        size = self.config.image_size
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return normalise(crop_shortest(image, size), OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """How well each image suits its prompt and people's taste, in standard deviations of the authors' data."""
        parameter = next(self.network.parameters())
        raw = self.network(pixels.to(parameter.device, parameter.dtype), *self.tokenize(prompts))
        return ((raw.to(torch.promote_types(raw.dtype, torch.float32)) - MEAN) / SD)[:, None]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "batch 35"], Bool[Tensor, "batch 35"]]:
        """[CLS], the prompt, [SEP], cut and padded to 35 tokens; and which of them are no padding."""
        device = next(self.network.parameters()).device
        encodings = [self.tokenizer.encode(prompt) for prompt in prompts]
        ids = torch.tensor([encoding.ids for encoding in encodings], device=device)
        return ids, torch.tensor([encoding.attention_mask for encoding in encodings], device=device).bool()


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """BERT's tokenizer with the tokens that the authors added; see `rewards.weights.load_tokenizer`."""
    ids = range(vocabulary - len(ADDED_TOKENS), vocabulary)
    return load_tokenizer(path, vocabulary, dict(zip(ADDED_TOKENS, ids, strict=True)), ADDED_TOKENS)


def _vision_config(config: ImageRewardConfig) -> BlipVisionConfig:
    return BlipVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        intermediate_size=4 * config.vision_width,
        layer_norm_eps=1e-6,
    )


def _text_config(config: ImageRewardConfig) -> BlipTextConfig:
    return BlipTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.text_width,
        encoder_hidden_size=config.vision_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=config.text_hidden,
        max_position_embeddings=config.positions,
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives the layers their attention to the image; no attention is causal here
    )
