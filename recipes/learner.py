"""A critic that learns: which network, from where, by which loss, and how it is written."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from align.train import Loss
from recipes.configs.train_reward import NetworkSettings, TrainRewardConfig
from rewards.load import load_reward
from rewards.rahf.config import PAPER, RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.network import TIED, RahfNetwork, forget_readouts
from rewards.rahf.start import check_sizes, of_critic, of_towers
from rewards.rahf.tokens import Tokenize, padded
from rewards.resnet import ResnetConfig, ResnetCritic, ResnetNetwork
from rewards.training.rahf import LossWeights, RahfBatch, RahfLoss, caption_loss
from rewards.training.readout import fit_readouts
from rewards.training.resnet import ResnetLoss
from rewards.weights import CONFIG, TOKENIZER, WEIGHTS, load_weights, write_network


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        network: Its parameters are trained.
        critic: Sees through the network as it is.
        size: Pixels along a side of the images and maps that it learns from.
        loss: Of the second stage.
        captioning: The loss of the first; None where it reads no prompts.
        reward: The class that reads what `write` writes.
        write: Puts network and tokenizer into a folder.
        finish: Given the best weights and all images once, fits what is not learned step by step; None where all is.
    """

    network: nn.Module
    critic: Rahf | ResnetCritic
    size: int
    loss: Loss[RahfBatch]
    captioning: Loss[RahfBatch] | None
    reward: str
    write: Callable[[Path], None]
    finish: Callable[[Path | None, Iterable[RahfBatch]], None] | None = None


def make_learner(config: TrainRewardConfig, device: torch.device) -> Learner:
    """The network at its start, on the CPU; new weights are drawn by the run's seed.

    Raises:
        ValueError: A start that is no RAHF, or sizes that do not fit.
    """
    torch.manual_seed(config.seed)
    weights = LossWeights(**config.loss.model_dump())
    if config.reward == "resnet50":
        return _resnet(config.network, weights)
    network, tokenizer = _start(config.network)
    if config.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.requires_grad_()
    if network.config.scores_read_rest:  # by what the heads will be, at the end
        network.readouts.requires_grad_(False)
        forget_readouts(network)
    return _rahf(network, tokenizer, weights, device)


def _resnet(settings: NetworkSettings, weights: LossWeights) -> Learner:
    network = ResnetNetwork(replace(ResnetConfig(), **_given(settings, "image_size", "heatmap_widths")))

    def write(folder: Path) -> None:
        write_network(folder, {WEIGHTS: network.state_dict()}, {CONFIG: asdict(network.config)})

    critic, size = ResnetCritic.of(network), network.config.image_size
    return Learner(network, critic, size, ResnetLoss(weights), None, "rewards.resnet:ResnetCritic", write)


def _rahf(network: RahfNetwork, tokenizer: Tokenizer, weights: LossWeights, device: torch.device) -> Learner:
    tokenize: Tokenize = lambda texts: padded(tokenizer, texts, device)  # noqa: E731 (it has a type)

    def write(folder: Path) -> None:
        state = {name: tensor for name, tensor in network.state_dict().items() if name not in TIED}
        write_network(folder, {WEIGHTS: state}, {CONFIG: asdict(network.config)})
        tokenizer.save(str(folder / TOKENIZER))

    def finish(best: Path | None, batches: Iterable[RahfBatch]) -> None:
        if best is not None:
            load_weights(network, best, TIED)
        fit_readouts(network, batches, tokenize)

    critic, loss = Rahf.of(network, tokenizer), RahfLoss(tokenize, weights)
    last = finish if network.config.scores_read_rest else None
    size, captions = network.config.image_size, caption_loss(tokenize)
    return Learner(network, critic, size, loss, captions, "rewards.rahf.critic:Rahf", write, last)


def _start(settings: NetworkSettings) -> tuple[RahfNetwork, Tokenizer]:
    if settings.rahf is None:
        assert settings.vit is not None and settings.t5 is not None  # the settings were checked
        return of_towers(settings.vit, settings.t5, _chosen(settings, replace(PAPER, prompted=True)))
    critic = load_reward(settings.rahf, torch.device("cpu"))
    if not isinstance(critic, Rahf):
        raise ValueError(f"'network.rahf' is {settings.rahf}, which is no RAHF. Name one, or a folder with one.")
    chosen = _chosen(settings, critic.config)
    check_sizes(chosen)
    return of_critic(critic, chosen, settings.weights)


def _chosen(settings: NetworkSettings, config: RahfConfig) -> RahfConfig:
    """A configuration with what the settings say."""
    sizes = _given(settings, "image_size", "heatmap_widths", "score_widths", "score_hidden")
    if settings.form is None:
        return replace(config, **sizes)
    prompted = settings.form == "augmented-prompt"
    # what a score would read takes all maps in one pass, and a prompted network draws one at a time
    return replace(config, **sizes, prompted=prompted, scores_read_rest=config.scores_read_rest and not prompted)


def _given(settings: NetworkSettings, *names: str) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in names}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
