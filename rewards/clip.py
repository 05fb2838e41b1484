"""CLIP networks in open_clip's folder format, and the similarity of image and text as a reward."""

import json
from abc import ABC
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from open_clip import CLIP, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from open_clip.utils import to_2tuple
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from rewards.base import Embedder, Images, PixelReward, check_images
from rewards.image import (
    center_pad,
    crop_shortest,
    normalise,
    resize,
    resize_longest,
    resize_longest_float,
    round_to_8_bit,
)
from rewards.memory import PromptMemory
from rewards.tokens import Tokenize, openai_tokenizer, transformers_tokenizer

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class ImageConfig:
    """How a CLIP network wants its images; the names are those of open_clip's `preprocess_cfg`.

    Attributes:
        size: Side of the square the network sees, in pixels.
        mean: Subtracted from the channels, in [0, 1].
        std: What the channels are then divided by.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" side to `size` and centre crop, "longest" and pad, or "squash" both; beyond open_clip's,
            "longest-float" resizes as torchvision resizes a tensor of floats, instead of a picture as PIL does.
        fill_color: Grey level of the padding, 0 to 255.
        antialias: Of "longest-float", which is bicubic; PIL always has it.
        crop_rounds_down: Whether an odd border's extra pixel is cut off right and below, as transformers does;
            otherwise halves are rounded to even, as torchvision does.
    """

    size: int
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    antialias: bool = True
    crop_rounds_down: bool = False

    def apply(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        """Round to 8 bits, so that a float image and its PNG score alike; resize, crop or pad, and normalise."""
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return normalise(self._fit(image), self.mean, self.std)

    def _fit(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        match self.resize_mode:
            case "shortest":
                return crop_shortest(image, self.size, self.interpolation, self.crop_rounds_down)
            case "longest":
                small = resize_longest(image, self.size, self.interpolation)
                return center_pad(small, self.size, self.fill_color / 255)
            case "longest-float":
                small = resize_longest_float(round_to_8_bit(image), self.size, self.antialias)
                return center_pad(small, self.size, self.fill_color / 255)
            case "squash":
                return resize(image, self.size, self.size, self.interpolation)
            case unknown:
                raise ValueError(f"resize_mode {unknown!r} is unknown; use shortest, longest, longest-float or squash.")


@dataclass(frozen=True)
class ClipNetwork:
    """A CLIP with its own tokenizer and preprocessing: pictures and prompts in, unit vectors and cosines out.

    Features have the dtype of the parameters, half precision promoted to float32. Gradients flow to the images and,
    where `model` is unfrozen, to its parameters: rewards and their training use the same object.

    Attributes:
        model: The two towers and `logit_scale`, the logarithm of the factor that cosines are multiplied by in training.
        tokenize: Prompts to token ids, cut to the context length.
        image: The preprocessing.
        memory: Of prompts; `open` it while many images are scored.
    """

    model: CLIP
    tokenize: Tokenize
    image: ImageConfig
    memory: PromptMemory = field(default_factory=PromptMemory, init=False, compare=False)

    def cast(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Pixels where the network is, and in its precision."""
        parameter = self.model.logit_scale
        return pixels.to(parameter.device, parameter.dtype)

    def encode_pixels(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Encode images that are preprocessed."""
        return unit(self.model.encode_image(self.cast(pixels)))

    def embed_images(self, images: Images) -> Float[Tensor, "batch dim"]:
        """Preprocess and encode images of any sizes."""
        return self.encode_pixels(torch.stack([self.image.apply(image) for image in images]))

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Encode prompts, each different one once."""
        return self.memory.read(prompts, self._encode)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The factor that cosines are multiplied by in training, near 100 in the published networks."""
        return promote(self.model.logit_scale).exp()

    def cosines(self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """The cosine between preprocessed image i and prompt i, in [-1, 1]."""
        return (self.encode_pixels(pixels) * self.embed_prompts(prompts)).sum(-1)

    def _encode(self, prompts: list[str]) -> Float[Tensor, "text dim"]:
        return unit(self.model.encode_text(self.tokenize(prompts).to(self.model.logit_scale.device)))


class ClipReward(PixelReward, ABC):
    """A reward that asks one CLIP network, preprocesses as that says, and can remember its prompts."""

    network: ClipNetwork

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        """Resize, crop or pad, and normalise, as the network's configuration says."""
        return self.network.image.apply(image)

    def remembering_prompts(self) -> AbstractContextManager[None]:
        """Each different prompt is encoded once."""
        return self.network.memory.open()


@final
class ClipScore(ClipReward, Embedder):
    """The cosine between a CLIP's image and text features, in [-1, 1] (Radford et al., arXiv 2103.00020).

    This is the raw cosine, without the factor 2.5 and the clipping at zero of CLIPScore (Hessel et al., arXiv
    2104.08718).

    Arguments:
        weights: A folder in open_clip's format, see `load_clip`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores of half-precision parameters are float32.
    """

    dimensions = ("overall",)
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.network = load_clip(Path(weights), device, dtype)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 1"]:
        """The cosine of each pair."""
        return self.network.cosines(pixels, prompts)[:, None]

    def embed(self, images: Images) -> Float[Tensor, "batch dim"]:
        """Image features of unit length."""
        check_images(images)
        return self.network.embed_images(images)


def load_clip(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> ClipNetwork:
    """Load a frozen CLIP from a folder in open_clip's format, without unpickling anything and without the network.

    Arguments:
        folder: `open_clip_config.json` (`model_cfg`, `preprocess_cfg`), `open_clip_model.safetensors`, and, where
            `text_cfg` names an `hf_tokenizer_name`, the files of a Hugging Face tokenizer. Otherwise CLIP's own
            vocabulary is used, read as `tokenizer_mode` says: "openai", "transformers" or, if absent, as open_clip
            does (see `rewards.tokens`).
        device: Where the network goes.
        dtype: What its parameters are cast to.

    Raises:
        ValueError: A missing or damaged file, a configuration that open_clip's CLIP does not have, or tensors that do
            not fit it.
    """
    model_config, image_config = _read_config(folder)
    model = _build(model_config, folder)
    _load_weights(model, folder / WEIGHTS)
    model.eval().requires_grad_(False).to(device, dtype)
    return ClipNetwork(model, _tokenizer(model_config["text_cfg"], folder), _image_config(image_config, model))


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}; give a folder with a model in open_clip's format.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return config["model_cfg"], config.get("preprocess_cfg", {})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a JSON object with a `model_cfg` ({error!r}). Restore the file.") from error


def _build(config: dict[str, Any], folder: Path) -> CLIP:
    try:
        return CLIP(**config)
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} does not describe a plain open_clip CLIP: {error}.") from error


def _load_weights(model: CLIP, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; weights are read from safetensors only. Restore or convert the file.")
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights that {CONFIG} beside it describes: {error}") from error


def _tokenizer(text_config: dict[str, Any], folder: Path) -> Tokenize:
    length = text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs") or {}
    mode = text_config.get("tokenizer_mode")
    if not text_config.get("hf_tokenizer_name"):
        return _clip_tokenizer(mode, length, options)
    try:
        # Without its vocabulary transformers would make up a tokenizer to which all words are the same.
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise FileNotFoundError("neither tokenizer.json nor vocab.json")
        return HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no tokenizer, which its {CONFIG} asks for ({error}). Restore its files."
        ) from error


def _clip_tokenizer(mode: str | None, length: int, options: dict[str, Any]) -> Tokenize:
    match mode:
        case None:
            return SimpleTokenizer(context_length=length, **options)
        case "openai":
            return openai_tokenizer(length)
        case "transformers":
            return transformers_tokenizer(length)
        case unknown:
            raise ValueError(f"tokenizer_mode {unknown!r} is unknown; use openai or transformers, or leave it out.")


def _image_config(config: dict[str, Any], model: CLIP) -> ImageConfig:
    pair: Any = to_2tuple(model.visual.image_size)  # a transformer has a pair, a ResNet one number
    height, width = pair
    if height != width:
        raise ValueError(f"The network wants {height} x {width} pixels; only square inputs are supported.")
    given: dict[str, Any] = {
        key: config[key] for key in ("interpolation", "resize_mode", "fill_color") if key in config
    }
    given |= {key: tuple(config[key]) for key in ("mean", "std") if key in config}
    return ImageConfig(size=height, **given)


def unit(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Features divided by their length, half precision promoted."""
    return normalize(promote(features), dim=-1)


def promote(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision to float32; the rest stays as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
