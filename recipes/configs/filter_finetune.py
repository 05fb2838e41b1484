"""Settings of `recipes/filter_finetune.py`, also `align filter-finetune`."""

from abc import ABC
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recipes.settings import Settings


class SamplingSettings(Settings):
    """How images are sampled, for training and for evaluation alike."""

    num_inference_steps: int = Field(default=25, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """Strength of classifier-free guidance; 1 is none."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    batch_size: int = Field(default=32, ge=1)
    """Images sampled at once."""


class SelectSettings(Settings):
    """Which of a prompt's images are trained on."""

    per_prompt: int = Field(default=1, ge=1)
    """The best so many images of each prompt are kept."""
    threshold: float | None = None
    """Keep an image only if its score is at least this."""
    threshold_quantile: float | None = Field(default=None, ge=0, le=1)
    """Keep an image only if its score is at least this quantile of all the images' scores."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "SelectSettings":
        if self.threshold is not None and self.threshold_quantile is not None:
            raise ValueError(
                f"'select.threshold' ({self.threshold}) and 'select.threshold_quantile' ({self.threshold_quantile}) "
                "exclude each other: set one of them to null."
            )
        return self


class RegularizationSettings(Settings):
    """Ordinary images, mixed in so that the model does not drift."""

    train_data_dir: Path | None = None
    """An imagefolder with captions: images, and a metadata.jsonl with file_name and text."""
    proportion: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images drawn from it."""

    @model_validator(mode="after")
    def _both_or_none(self) -> "RegularizationSettings":
        if (self.train_data_dir is not None) != (self.proportion > 0):
            raise ValueError(
                f"'train.regularization.train_data_dir' is {self.train_data_dir} and 'train.regularization.proportion' "
                f"{self.proportion:g}: give both, a folder and a share above 0, or neither."
            )
        return self


class LoopSettings(Settings, ABC):
    """The fine-tuning loop, whatever the images are."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Step size of AdamW at its highest."""
    train_batch_size: int = Field(default=16, ge=1)
    """Images that a process sees at once."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches a step: the global batch is train_batch_size x this x processes."""
    max_train_steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """How the learning rate changes over the steps."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is scaled down to this norm."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    adam_weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the denominator of AdamW."""
    proportion_empty_prompts: float = Field(default=0.0, ge=0, lt=1)
    """Share of training images whose prompt is replaced by the empty one, for classifier-free guidance."""
    min_timestep: int = Field(default=0, ge=0)
    """Lowest noise level trained on, of usually 1000. High levels decide what is shown and where, low ones the
    details."""
    snr_gamma: float | None = Field(default=None, gt=0)
    """Gamma of the min-SNR weights of the loss, arXiv 2303.09556; 5 is usual, null is none."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Size of a shift of the noise that all pixels of a channel share, for very dark and very bright images."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the average of the LoRA's weights over the steps, which is then the result; 0 is none."""
    validation_steps: int = Field(default=250, ge=1)
    """Steps between looks at the first validation prompts, see num_validation_prompts."""
    checkpointing_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = Field(default=None, ge=1)
    """Keep only the newest so many checkpoints; null keeps all."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; the LoRA itself stays in float32."""

    @model_validator(mode="after")
    def _warmup_is_used(self) -> "LoopSettings":
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError(
                f"'train.lr_warmup_steps' is {self.lr_warmup_steps}, which 'train.lr_scheduler' constant ignores: use "
                "constant_with_warmup, or 0 steps."
            )
        return self


class TrainSettings(LoopSettings):
    """The fine-tuning loop."""

    regularization: RegularizationSettings = RegularizationSettings()
    """Ordinary images, mixed in so that the model does not drift."""


class LoraSettings(Settings):
    """The adapter that is trained."""

    rank: int = Field(default=8, ge=1)
    """Rank of the update of each layer."""
    lora_alpha: int = Field(default=8, ge=1)
    """The update is scaled by lora_alpha / rank."""
    target_modules: list[str] | None = Field(default=None, min_length=1)
    """Names of the layers that get an adapter; null for the attention projections of the model's family."""


class EvaluateSettings(Settings):
    """The comparison of the base model and the tuned one on held-out prompts."""

    samples_per_prompt: int = Field(default=4, ge=1)
    """Images for each validation prompt, with the same seeds for both models."""
    batch_size: int = Field(default=64, ge=1)
    """Images scored at once."""


class FilterFinetuneConfig(Settings):
    """Generate candidates, score them, keep the best, fine-tune a LoRA on them, and compare it with the base model."""

    pretrained_model_name_or_path: str = "sandbox"
    """The text-to-image model: a folder, a repository on the Hub, or `sandbox`."""
    output_dir: Path
    """The run's folder. To continue a run, give the same one again."""
    seed: int = Field(default=0, ge=0)
    """Seed of the run. Each image has its own, drawn from this, its prompt and its number."""
    train_prompts: Path
    """The prompts to train on: a .txt file with one a line, a .jsonl file with a `text` a line, or `sandbox:train`."""
    validation_prompts: Path
    """The held-out prompts to compare on, in the same format, or `sandbox:validation`."""
    num_validation_prompts: int = Field(default=8, ge=0)
    """How many of them are drawn with the same seeds again and again during training; 0 for none."""
    rounds: int = Field(default=1, ge=1)
    """How often the whole is done: each round goes on with the LoRA, from fresh candidates of the model so far."""
    rewards: list[str] = Field(min_length=1)
    """The rewards that select, each as NAME or NAME=WEIGHT, e.g. `sandbox-hps` or `my_reward:MyReward=0.5`."""
    holdout_rewards: list[str] = []
    """Rewards that only judge the result."""
    samples_per_prompt: int = Field(default=16, ge=1)
    """Candidates for each training prompt (N)."""
    sampling: SamplingSettings = SamplingSettings()
    """How images are sampled."""
    select: SelectSettings = SelectSettings()
    """Which candidates are trained on."""
    train: TrainSettings = TrainSettings()
    """The fine-tuning loop."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """The comparison."""
    report_to: list[Literal["none", "wandb", "tensorboard"]] = ["none"]
    """Where metrics go besides metrics.jsonl."""
    device: str = "auto"
    """Where to compute: a torch device, or `auto` for the best there is."""

    @model_validator(mode="after")
    def _enough_to_select_from(self) -> "FilterFinetuneConfig":
        if self.select.per_prompt > self.samples_per_prompt:
            raise ValueError(
                f"'select.per_prompt' is {self.select.per_prompt} and 'samples_per_prompt' {self.samples_per_prompt}: "
                "a prompt cannot keep more images than it has. Keep fewer, or generate more."
            )
        return self

    @model_validator(mode="after")
    def _none_stands_alone(self) -> "FilterFinetuneConfig":
        if "none" in self.report_to and len(self.report_to) > 1:
            raise ValueError(f"'report_to' names both none and others ({' '.join(self.report_to)}); drop none.")
        return self
