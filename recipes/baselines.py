"""Names of rewards that a comparison knows besides the cards: baselines that are trained on the data first."""

from collections.abc import Sequence
from pathlib import Path

from recipes.configs.train_reward import TrainRewardConfig
from recipes.presets import presets
from recipes.settings import nest, read_yaml
from recipes.train_reward import main as train_reward
from rewards.names import find_cards, group_specs

RESNET = "resnet50"
PRESET = "train-reward/resnet50_sandbox"


def resolve_rewards(specs: Sequence[str], data: str, device: str) -> dict[str, str]:
    """What follows the command as names to show -> names to load; `resnet50` is trained where it is not yet.

    Raises:
        ValueError: An unknown name; `resnet50` for other data than the sandbox's, on which it has not been trained.
    """
    names = {name: name for name in group_specs(specs)}
    for name in names:
        if name != RESNET:
            find_cards(name)
    if RESNET in names:
        names[RESNET] = str(_resnet(data, device))
    return names


def _resnet(data: str, device: str) -> Path:
    config = preset(PRESET, device)
    if data.partition("-")[0] != config.data:
        raise ValueError(
            f"{RESNET} by its name is trained on the data of the sandbox, and is judged by {data}. Train one: `align "
            f"train-reward {RESNET} --data {data} --output_dir runs/{RESNET}`, and give runs/{RESNET}/reward instead."
        )
    trained = config.output_dir / "reward"
    if not trained.exists():
        print(f"{RESNET} is trained first, from scratch, into {trained}")
        train_reward(config)
    return trained


def preset(name: str, device: str) -> TrainRewardConfig:
    """The settings of a preset, for another device."""
    values = read_yaml(presets()[name], TrainRewardConfig) | {"device": device}
    return TrainRewardConfig(**nest(TrainRewardConfig, values))
