"""RAHF as a reward and a critic: images and prompts in; scores, heatmaps and misaligned words out."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import interpolate

from rewards.base import Critic, Critique, Heatmaps, Images, PixelReward, check_pairs, join_maps
from rewards.image import normalise, resize
from rewards.rahf.config import RahfConfig
from rewards.rahf.network import END, HEATMAPS, PAD, SCORES, TIED, Fused, RahfNetwork
from rewards.rahf.tokens import Padded, padded
from rewards.rahf.words import read_marks, split_words, task_prompt
from rewards.weights import TOKENIZER, load_tokenizer, load_weights, read_config


@final
class Rahf(Critic, PixelReward):
    """RAHF (Liang et al., arXiv 2312.10240) in the form that its configuration says, the paper's or the port's.

    Scores are in [0, 1], higher is better (a score of 1 in "plausibility" means: no artifacts). Heatmaps are 1 where
    something is implausible or does not follow the prompt.

    Arguments:
        weights: A folder with `config.json` (see `RahfConfig`), `model.safetensors`, and `tokenizer.json` of
            `t5-base`. `align convert` makes it from the authors' file.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores and maps of half-precision parameters are float32.

    Raises:
        ValueError: A missing or damaged file, or files that do not belong together.
    """

    dimensions = SCORES
    heatmaps = HEATMAPS
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        folder = Path(weights)
        self.config = read_config(folder, RahfConfig)
        network = RahfNetwork(self.config)
        load_weights(network, folder, TIED)
        self.network = network.eval().requires_grad_(False).to(device, dtype)
        self.tokenizer = read_tokenizer(folder / TOKENIZER, self.config.vocabulary)

    @classmethod
    def of(cls, network: RahfNetwork, tokenizer: Tokenizer) -> "Rahf":
        """A critic around a network as it is, for example while it trains."""
        critic = cls.__new__(cls)
        critic.config, critic.network, critic.tokenizer = network.config, network, tokenizer
        return critic

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        """Squashed to the network's square (bilinear, 8-bit rounding) and mapped to [-1, 1]."""
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        size = self.config.image_size
        return normalise(resize(image, size, size, "bilinear"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 4"]:
        """Plausibility, alignment, aesthetics and overall quality."""
        parameter = self.network.projection.bias
        seen = self.network.see(pixels.to(parameter.device, parameter.dtype))
        bare = None if self.config.prompted else self._fuse(seen, prompts)
        maps = self._maps(seen, prompts, bare) if self.config.scores_read_rest else None
        return self._scores(seen, prompts, bare, maps)

    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        """Scores, maps and words; the maps are resized to the images (bilinear, antialiased)."""
        check_pairs(images, prompts)
        seen = self.network.see(self._pixels(images))
        bare = self._fuse(seen, prompts)
        maps = self._maps(seen, prompts, bare)
        words = [split_words(prompt) for prompt in prompts]
        return Critique(
            scores=self._scores(seen, prompts, bare, maps),
            heatmaps={name: fit_maps(_promoted(maps[:, i]), images) for i, name in enumerate(HEATMAPS)},
            words=words,
            misaligned=[read_marks(*pair) for pair in zip(words, self._written(bare), strict=True)],
        )

    def tokenize(self, prompts: Sequence[str]) -> Padded:
        """Token ids with the end of the text, never cut, padded to the longest; and which of them are no padding."""
        return padded(self.tokenizer, prompts, self.network.projection.bias.device)

    def _pixels(self, images: Images) -> Float[Tensor, "batch 3 size size"]:
        parameter = self.network.projection.bias
        return torch.stack([self.preprocess(image) for image in images]).to(parameter.device, parameter.dtype)

    def _fuse(self, seen: Float[Tensor, "batch seen width"], prompts: Sequence[str]) -> Fused:
        return self.network.fuse(seen, *self.tokenize(prompts))

    def _scores(
        self,
        seen: Float[Tensor, "batch seen width"],
        prompts: Sequence[str],
        bare: Fused | None,
        maps: Float[Tensor, "batch 2 size size"] | None,
    ) -> Float[Tensor, "batch 4"]:
        if self.config.scores_read_rest:
            assert bare is not None and maps is not None
            return _promoted(self.network.read_scores(bare, maps, self.tokenize(prompts)[0]))
        features = {name: self._features("SCORE", name, seen, prompts, bare) for name in SCORES}
        return _promoted(torch.stack([self.network.score(features[name], name) for name in SCORES], dim=1))

    def _maps(
        self, seen: Float[Tensor, "batch seen width"], prompts: Sequence[str], bare: Fused | None
    ) -> Float[Tensor, "batch 2 size size"]:
        features = {name: self._features("HEATMAP", name, seen, prompts, bare) for name in HEATMAPS}
        return torch.stack([self.network.heatmap(features[name], name) for name in HEATMAPS], dim=1)

    def _features(
        self,
        kind: str,
        name: str,
        seen: Float[Tensor, "batch seen width"],
        prompts: Sequence[str],
        bare: Fused | None,
    ) -> Float[Tensor, "batch width grid grid"]:
        """What the head for `name` reads: the fusion with the bare prompts, or with prompts that ask for `name`."""
        if not self.config.prompted:
            assert bare is not None
            return bare.features
        return self._fuse(seen, [task_prompt(kind, name, prompt) for prompt in prompts]).features

    def _written(self, bare: Fused) -> list[str]:
        """What the decoder writes for each prompt; it always reads the bare one."""
        rows = self.network.write(bare)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """T5's tokenizer; see `rewards.weights.load_tokenizer`."""
    return load_tokenizer(path, vocabulary, {"<pad>": PAD, "</s>": END})


def _promoted(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def fit_maps(maps: Float[Tensor, "batch size size"], images: Images) -> Heatmaps:
    """Each map at the size of its image (bilinear, antialiased); one tensor where all sizes are the same."""
    return join_maps(
        [
            interpolate(one[None, None], size=image.shape[-2:], mode="bilinear", antialias=True)[0, 0].clamp(0, 1)
            for one, image in zip(maps, images, strict=True)
        ]
    )
