"""Settings of `align train-reward`, also `recipes/train_reward.py`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipes.settings import Settings


class NetworkSettings(Settings):
    """Where a RAHF starts: at a trained one, or at a ViT and a T5. A resnet50 starts from scratch, of `image_size`."""

    rahf: str | None = None
    """A RAHF to start from: `rahf-port`, or a folder that `align convert` or a training wrote."""
    weights: Literal["all", "towers", "none"] = "all"
    """What is kept of it: all; ViT and T5 (new heads); or none: its sizes and its tokenizer only."""
    vit: str | None = None
    """Instead: a ViT, as folder or repository of the Hub, such as google/vit-base-patch16-224."""
    t5: str | None = None
    """And a T5 of the first version, such as google-t5/t5-base."""
    form: Literal["augmented-prompt", "multi-head"] | None = None
    """The paper's augmented prompt (three heads) or multi-head (seven); null: that of the RAHF, or augmented-prompt."""
    image_size: int | None = Field(default=None, ge=1)
    """Pixels along a side that the network sees; null: that of the RAHF, or 512."""
    heatmap_widths: list[int] | None = Field(default=None, min_length=3)
    """Channels of a heatmap head: two convolutions, then each doubling; null: those of the RAHF, or of the paper."""
    score_widths: list[int] | None = Field(default=None, min_length=1)
    """Channels of a score head's convolutions."""
    score_hidden: list[int] | None = Field(default=None, min_length=1)
    """Widths of its dense layers."""

    @model_validator(mode="after")
    def _one_start(self) -> "NetworkSettings":
        if (self.vit is None) != (self.t5 is None) or (self.rahf is not None and self.vit is not None):
            raise ValueError(
                "'network' must name either a rahf, or both a vit and a t5: "
                f"it has rahf {self.rahf}, vit {self.vit}, t5 {self.t5}."
            )
        return self


class CaptionSettings(Settings):
    """A first stage, in which the network learns to write captions of images (the paper's pre-training)."""

    train_data_dir: Path | None = None
    """A folder of images with captions beside them, such as an imagefolder; null for no such stage."""
    max_train_steps: int = Field(default=1000, ge=1)
    """Optimizer steps of this stage."""


class NegativeSettings(Settings):
    """Real photos, with which nothing is wrong: their maps are empty, and they have no scores."""

    train_data_dir: Path | None = None
    """A folder of photos; captions beside them are read."""
    proportion: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images drawn from it."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "NegativeSettings":
        if (self.train_data_dir is not None) != (self.proportion > 0):
            raise ValueError(
                f"'negatives.train_data_dir' is {self.train_data_dir} and 'negatives.proportion' "
                f"{self.proportion:g}: give both, a folder and a share above 0, or neither."
            )
        return self


class LossSettings(Settings):
    """How much each part of the loss counts; the defaults are said to be the paper's."""

    heatmap: float = Field(default=5.0, ge=0)
    """Of the mean squared error of the maps."""
    score: float = Field(default=1.0, ge=0)
    """Of the mean squared error of the scores."""
    words: float = Field(default=2.0, ge=0)
    """Of the cross-entropy of the written words."""
    kld: float = Field(default=0.0, ge=0)
    """Of the divergence between the maps as distributions; 0 leaves it out."""
    lift: float = Field(default=0.0, ge=0, le=1)
    """How far hot pixels count for more, against maps that are zero everywhere: 0 alike, 1 in proportion to heat."""


class TrainSettings(Settings):
    """The training loop."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Step size of AdamW at its highest."""
    train_batch_size: int = Field(default=8, ge=1)
    """Images that a process sees at once."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches a step: the global batch is train_batch_size x this x processes."""
    max_train_steps: int = Field(default=20_000, ge=1)
    """Optimizer steps."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = "cosine"
    """How the learning rate changes over the steps."""
    lr_warmup_steps: int = Field(default=500, ge=0)
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is scaled down to this norm."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = Field(default=0.98, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    adam_weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the denominator of AdamW."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the average of the weights over the steps, which is then what is looked at and kept; 0 is none."""
    augmentation: bool = True
    """Crop images with their maps, and change colours, as the paper does."""
    gradient_checkpointing: bool = False
    """Compute activations again for the backward pass instead of keeping them: less memory, more time."""
    dataloader_num_workers: int = Field(default=2, ge=1)
    """Threads that read and prepare images ahead."""
    validation_steps: int = Field(default=500, ge=1)
    """Steps between looks at the dev split; the best weights seen there are kept."""
    checkpointing_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = Field(default=2, ge=1)
    """Keep only the newest so many checkpoints; null keeps all."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; weights stay in float32."""

    @model_validator(mode="after")
    def _warmup_is_used(self) -> "TrainSettings":
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError(
                f"'train.lr_warmup_steps' is {self.lr_warmup_steps}, which 'train.lr_scheduler' constant ignores: use "
                "constant_with_warmup, or 0 steps."
            )
        return self


UNUSED_BY_RESNET = {
    "network": ("form", "weights", "score_widths", "score_hidden"),
    "loss": ("words",),
    "train": ("gradient_checkpointing",),
}
"""It has one form, one dense layer for each score, and writes nothing."""


class TrainRewardConfig(Settings):
    """Train a critic on what people said of images: scores, what is wrong where, and which words are missed."""

    positional: ClassVar[tuple[str, ...]] = ("reward",)

    reward: Literal["rahf", "resnet50"] = "rahf"
    """What is trained: rahf, or the paper's baseline resnet50, which does not read the prompt."""
    output_dir: Path
    """The run's folder; `reward/` in it is the trained reward. To continue a run, give the same one again."""
    data: str
    """The data set: a folder (see docs/train-a-reward.md), or `sandbox`."""
    train_split: str = "train"
    """The split to learn from."""
    dev_split: str | None = "dev"
    """The split that selects the weights; null keeps the last ones."""
    max_missing: float = Field(default=0.05, ge=0, le=1)
    """The share of images that may be missing from the data set."""
    seed: int = Field(default=0, ge=0)
    """Seed of new weights, of the draws and of the augmentation."""
    network: NetworkSettings = NetworkSettings()
    """Where the network starts."""
    captions: CaptionSettings = CaptionSettings()
    """The first stage."""
    negatives: NegativeSettings = NegativeSettings()
    """Real photos among the images."""
    loss: LossSettings = LossSettings()
    """What is minimised."""
    train: TrainSettings = TrainSettings()
    """The loop."""
    report_to: list[Literal["none", "wandb", "tensorboard"]] = ["none"]
    """Where metrics and pictures go besides metrics.jsonl."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @model_validator(mode="after")
    def _starts_as_it_can(self) -> "TrainRewardConfig":
        has_start = self.network.rahf is not None or self.network.vit is not None
        if self.reward == "rahf" and not has_start:
            raise ValueError("'network' must say where a rahf starts: at a rahf, or at a vit and a t5.")
        if self.reward == "resnet50" and (has_start or self.captions.train_data_dir):
            raise ValueError("A resnet50 has no towers and reads no captions; leave out rahf, vit, t5 and captions.")
        if self.reward == "resnet50" and (unused := self._unused()):
            raise ValueError(f"A resnet50 has no use for {', '.join(unused)}; leave them at their defaults.")
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"'report_to' names both none and others ({' '.join(self.report_to)}); drop none.")
        return self

    def _unused(self) -> list[str]:
        """What a resnet50 has no use for and is not at its default; a resolved file gives everything."""
        return [
            f"{group}.{name}"
            for group, names in UNUSED_BY_RESNET.items()
            for name in names
            if getattr(getattr(self, group), name) != getattr(type(self).model_fields[group].default, name)
        ]
