"""Settings of `recipes/reward_token.py`, also `align reward-token`."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recipes.configs.filter_finetune import LoopSettings, LoraSettings, SamplingSettings
from recipes.configs.token_settings import (
    EmbeddingSettings,
    RegularizationSettings,
    SoftmaxSettings,
    SourceSettings,
)
from recipes.settings import Settings


class TrainSettings(LoopSettings):
    """The fine-tuning loop."""


class EvaluateSettings(Settings):
    """The comparison on held-out prompts, all ways of drawing with the same seeds."""

    samples_per_prompt: int = Field(default=4, ge=1)
    """Images for each validation prompt and each way of drawing."""
    batch_size: int = Field(default=64, ge=1)
    """Images scored at once."""
    guidance_scales: list[float] = []
    """Also compare base and tuned model at these guidance scales."""
    guidance_samples_per_prompt: int = Field(default=2, ge=1)
    """Images for each validation prompt there."""


def slug(words: str) -> str:
    """The letters and digits of words, in lower case, for the name of a folder or of a token."""
    return "-".join(re.findall(r"[^\W_]+", words.lower()))


class RewardTokenConfig(Settings):
    """Tie images that people do not like to a few words, fine-tune a LoRA, and steer away from the words."""

    pretrained_model_name_or_path: str = "sandbox"
    """The text-to-image model: a folder, a repository on the Hub, or `sandbox`."""
    output_dir: Path
    """The run's folder. To continue a run, give the same one again."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run. Each image has its own, drawn from this, its prompt and its number."""
    identifier: str = "Weird image. "
    """The words before the captions of images that people do not like; the negative prompt afterwards."""
    dimension_identifiers: list[str] = []
    """In place of `identifier`, one for each dimension in which an image can fail: each WORDS=REWARD, where the reward
    says which images fail, e.g. `Weird anatomy. =sandbox-rahf.plausibility`."""
    level_identifiers: list[str] = []
    """In place of `identifier`, one for each level of the reward, the worst first; every image has one."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """A learned embedding."""
    proportion_identifier_alone: float = Field(default=0.0, ge=0, lt=1)
    """Share of those images whose caption is the words alone, as in a negative prompt."""
    train_prompts: Path | None = None
    """Prompts to draw from: .txt, one a line, .jsonl with a `text` a line, or `sandbox:train`; not with a folder."""
    validation_prompts: Path
    """The held-out prompts to compare on, in the same format, or `sandbox:validation`."""
    num_validation_prompts: int = Field(default=8, ge=0)
    """How many of them are drawn with the same seeds again and again during training; 0 for none."""
    rewards: list[str] = Field(min_length=1)
    """The rewards that select, each as NAME or NAME=WEIGHT, e.g. `sandbox-hps` or `my_reward:MyReward=0.5`."""
    holdout_rewards: list[str] = []
    """Rewards that only judge the result."""
    source: SourceSettings = SourceSettings()
    """What to select from."""
    select: SoftmaxSettings = SoftmaxSettings()
    """Which images are preferred, and which are not."""
    regularization: RegularizationSettings = RegularizationSettings()
    """Ordinary images."""
    train: TrainSettings = TrainSettings()
    """The fine-tuning loop."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    sampling: SamplingSettings = SamplingSettings()
    """How images are drawn for the comparison; its negative prompt is used where the words are not."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The comparison."""
    report_to: list[Literal["none", "wandb", "tensorboard"]] = ["none"]
    """Where metrics go besides metrics.jsonl."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @property
    def dimensions(self) -> dict[str, str]:
        """The reward of each of `dimension_identifiers`, by its words."""
        return dict(text.rsplit("=", 1) for text in self.dimension_identifiers)

    @field_validator("dimension_identifiers")
    @classmethod
    def _name_rewards(cls, dimension_identifiers: list[str]) -> list[str]:
        for text in dimension_identifiers:
            words, _, reward = text.rpartition("=")
            if not words or not reward or "=" in words:
                raise ValueError(
                    f"{text!r} must be WORDS=REWARD with one reward and no weight, such as 'Weird anatomy. "
                    "=sandbox-rahf.plausibility'."
                )
        return dimension_identifiers

    @model_validator(mode="after")
    def _identifiers_say_something(self) -> "RewardTokenConfig":
        found = {"identifier": [self.identifier], "level_identifiers": self.level_identifiers}
        found["dimension_identifiers"] = list(self.dimensions)
        for name, identifiers in found.items():
            for words in identifiers:
                if not slug(words) or words == words.rstrip():
                    raise ValueError(
                        f"'{name}' has {words!r}: it stands before a prompt, so it must say something, in letters or "
                        "digits, and end in a space, as in 'Weird image. '."
                    )
        return self

    @model_validator(mode="after")
    def _embedding_warms_up(self) -> "RewardTokenConfig":
        steps, warmup = self.embedding.max_train_steps, self.train.lr_warmup_steps
        if 0 < steps <= warmup:
            raise ValueError(
                f"'embedding.max_train_steps' is {steps} and 'train.lr_warmup_steps' {warmup}: the embedding has the "
                "same warm-up, which must be over before it ends. Give it more steps, or both less warm-up."
            )
        return self

    @model_validator(mode="after")
    def _mix_of_its_model(self) -> "RewardTokenConfig":
        folder, model = str(self.regularization.train_data_dir), self.pretrained_model_name_or_path
        if folder == "sandbox:mix" and model != "sandbox":
            raise ValueError(
                f"'regularization.train_data_dir' is sandbox:mix, what the model 'sandbox' was trained on, and the "
                f"model is {model!r}. Give a folder of ordinary images for it."
            )
        return self

    @model_validator(mode="after")
    def _identifiers_differ(self) -> "RewardTokenConfig":
        said = {"dimension_identifiers": [*self.dimensions], "level_identifiers": self.level_identifiers}
        for name, identifiers in said.items():
            given, letters = getattr(self, name), {slug(words) for words in identifiers}
            if given and (len(given) < 2 or len(letters) < len(given)):
                raise ValueError(
                    f"'{name}' is {given}: give two or more, which differ in letters or digits; for one, give "
                    "'identifier'."
                )
        return self

    @model_validator(mode="after")
    def _one_meaning(self) -> "RewardTokenConfig":
        learned = self.embedding.max_train_steps > 0
        if bool(self.dimension_identifiers) + bool(self.level_identifiers) + learned > 1:
            raise ValueError(
                "Dimensions, levels and a learned embedding came together: give one of 'dimension_identifiers', "
                "'level_identifiers' and 'embedding.max_train_steps', and compare runs of each."
            )
        return self

    @model_validator(mode="after")
    def _guidance_reads_the_words(self) -> "RewardTokenConfig":
        if self.sampling.guidance_scale == 1:
            raise ValueError(
                "'sampling.guidance_scale' is 1, where no negative prompt is read, so that the words would have no "
                "effect. Give more, such as 7.5; images to select from have 'source.sampling' of their own."
            )
        if low := [scale for scale in self.evaluate.guidance_scales if scale < 1]:
            raise ValueError(f"'evaluate.guidance_scales' holds {low[0]:g}; 1 is no guidance, and the least.")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "RewardTokenConfig":
        if (self.train_prompts is None) == (self.source.train_data_dir is None):
            raise ValueError(
                f"'train_prompts' is {self.train_prompts} and 'source.train_data_dir' {self.source.train_data_dir}: "
                "give one of them, prompts to draw from or a folder of images."
            )
        return self

    @model_validator(mode="after")
    def _none_stands_alone(self) -> "RewardTokenConfig":
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"'report_to' names both none and others ({' '.join(self.report_to)}); drop none.")
        return self
