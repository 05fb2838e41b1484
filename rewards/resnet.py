"""The ResNet-50 that RAHF is compared with: scores and heatmaps from the image alone (arXiv 2312.10240, section 4.2).

The paper gives no sizes of its heads. Departures and choices of ours:

1. GroupNorm (Wu and He, arXiv 1803.08494) stands where a ResNet has BatchNorm: a score never depends on its batch, in
   training neither, and there are no running statistics, which a training that is resumed would have to restore. The
   parameters are the same in name and number; published weights of a ResNet with BatchNorm do not fit, those of one
   with GroupNorm do.
2. One network has all heads: a dense layer on the averaged features for the scores, and for each map the transposed
   convolutions of RAHF's own head, as many as bring the features back to the size of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from rewards.base import Critic, Critique, Images, PixelReward, check_pairs
from rewards.clip import promote
from rewards.image import normalise, resize
from rewards.rahf.critic import fit_maps
from rewards.rahf.heads import make_heatmap_head
from rewards.rahf.network import HEATMAPS, SCORES
from rewards.rahf.words import split_words
from rewards.weights import load_weights, read_config

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet, in [0, 1]."""


@dataclass(frozen=True)
class ResnetConfig:
    """Sizes; the defaults of the backbone are those of ResNet-50. Widths are in channels.

    Attributes:
        image_size: Side of the square the network sees, in pixels; a multiple of the stride.
        stem_width: Of the first convolution.
        widths: Of the stages, whose layers are bottlenecks of a quarter of these.
        depths: Layers of each stage.
        groups: Of each GroupNorm; a divisor of the stem's width and of a quarter of each stage's.
        heatmap_widths: Of a heatmap head: two convolutions, then a doubling for each halving of the backbone.

    Raises:
        ValueError: Maps would not have the size of the image.
    """

    image_size: int = 512
    stem_width: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 32
    heatmap_widths: tuple[int, ...] = (256, 256, 256, 128, 64, 32, 16)

    def __post_init__(self) -> None:
        doublings = len(self.heatmap_widths) - 2
        if 2**doublings != self.stride or self.image_size % self.stride:
            raise ValueError(
                f"image_size {self.image_size} came with {doublings} doublings in heatmap_widths, and the stride of "
                f"{len(self.widths)} stages is {self.stride}. Give a multiple of {self.stride} and "
                f"{self.stride.bit_length() - 1} doublings behind the first two widths."
            )

    @property
    def stride(self) -> int:
        """Pixels of the image along a side of a position of the features."""
        return 2 ** (len(self.widths) + 1)


@final
class ResnetNetwork(nn.Module):
    """See, then score what was seen and draw its defects. It has parameters only, no buffers."""

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNetModel(_backbone_config(config))
        _normalise_groups(self.backbone, config.groups)
        width = config.widths[-1]
        self.dense = nn.Linear(width, len(SCORES))
        self.heatmap_heads = nn.ModuleDict(
            {name: make_heatmap_head("paper", width, config.heatmap_widths) for name in HEATMAPS}
        )

    def see(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width grid grid"]:
        """The last features, a position for each `stride` pixels."""
        return self.backbone(pixels).last_hidden_state

    def score(self, features: Float[Tensor, "batch width grid grid"]) -> Float[Tensor, "batch 4"]:
        """All of `SCORES`, in [0, 1]."""
        return self.dense(features.mean((-2, -1))).sigmoid()

    def draw(self, features: Float[Tensor, "batch width grid grid"]) -> Float[Tensor, "batch 2 size size"]:
        """All of `HEATMAPS`, in [0, 1]."""
        return torch.stack([self.heatmap_heads[name](features) for name in HEATMAPS], dim=1)


@final
class ResnetCritic(Critic, PixelReward):
    """A ResNet with RAHF's scores and heatmaps, see the head of this module. It does not read the prompt.

    Scores are in [0, 1], higher is better. Heatmaps are 1 where something is implausible or does not follow the
    prompt. The words of the prompt are given back, and none is ever said to be misaligned.

    Arguments:
        weights: A folder with `config.json` (see `ResnetConfig`) and `model.safetensors`.
        device: Where the network goes; images are expected there.
        dtype: Of its parameters; scores and maps of half-precision parameters are float32.

    Raises:
        ValueError: A missing or damaged file, or files that do not belong together.
    """

    dimensions = SCORES
    heatmaps = HEATMAPS
    judges_words = False
    differentiable = True

    def __init__(self, weights: Path | str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        folder = Path(weights)
        network = ResnetNetwork(read_config(folder, ResnetConfig))
        load_weights(network, folder)
        self.network = network.eval().requires_grad_(False).to(device, dtype)

    @classmethod
    def of(cls, network: ResnetNetwork) -> "ResnetCritic":
        """A critic around a network as it is, for example while it trains."""
        critic = cls.__new__(cls)
        critic.network = network
        return critic

    def preprocess(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 size size"]:
        """Squashed to the network's square (bilinear, 8-bit rounding), with ImageNet's mean and deviation."""
        size = self.network.config.image_size
        return normalise(resize(promote(image), size, size, "bilinear"), MEAN, STD)

    def score_pixels(
        self, pixels: Float[Tensor, "batch 3 size size"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch 4"]:
        """Plausibility, alignment, aesthetics and overall quality; the prompts are not looked at."""
        del prompts
        return promote(self.network.score(self._see(pixels)))

    def critique(self, images: Images, prompts: Sequence[str]) -> Critique:
        """Scores and maps in one pass; the maps are resized to the images (bilinear, antialiased)."""
        check_pairs(images, prompts)
        features = self._see(torch.stack([self.preprocess(image) for image in images]))
        maps = promote(self.network.draw(features))
        words = [split_words(prompt) for prompt in prompts]
        return Critique(
            scores=promote(self.network.score(features)),
            heatmaps={name: fit_maps(maps[:, index], images) for index, name in enumerate(HEATMAPS)},
            words=words,
            misaligned=[[False] * len(row) for row in words],
        )

    def _see(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch width grid grid"]:
        """In the network's precision, where it is."""
        parameter = self.network.dense.bias
        return self.network.see(pixels.to(parameter.device, parameter.dtype))


def _backbone_config(config: ResnetConfig) -> ResNetConfig:
    return ResNetConfig(embedding_size=config.stem_width, hidden_sizes=config.widths, depths=config.depths)


def _normalise_groups(backbone: nn.Module, groups: int) -> None:
    """Put GroupNorm in the place of each BatchNorm."""
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(groups, child.num_features))
