"""Parts of the settings of `recipes/reward_token.py`: where images come from, which are chosen, what is learned."""

from pathlib import Path

from pydantic import Field, model_validator

from recipes.configs.filter_finetune import SamplingSettings
from recipes.settings import Settings


class SourceSettings(Settings):
    """The images that people's taste is read from: several of each prompt."""

    train_data_dir: Path | None = None
    """An imagefolder or a .parquet table with captions, several images of a prompt, or a run of align; null for images
    that the base model draws itself."""
    score_column: str | None = None
    """Take the scores from this column of the table or of the folder's metadata, instead of asking the reward."""
    samples_per_prompt: int = Field(default=16, ge=2)
    """Images that the base model draws of each prompt, where there is no folder."""
    sampling: SamplingSettings = SamplingSettings()
    """How it draws them, and the regularisation images."""

    @model_validator(mode="after")
    def _column_of_a_folder(self) -> "SourceSettings":
        if self.score_column and not self.train_data_dir:
            raise ValueError(
                f"'source.score_column' is {self.score_column!r} and 'source.train_data_dir' null: images that are yet "
                "to be drawn have no scores. Give the folder, or leave out the column."
            )
        return self


class SoftmaxSettings(Settings):
    """Which images are preferred and which are not: those that stand out among the images of their prompt."""

    scale: float = Field(default=100.0, gt=0)
    """What scores are multiplied by before the softmax: 100 for the cosines of HPS."""
    margin: float = Field(default=2.0, ge=1)
    """An image stands out if its share of the softmax is above margin / n, of n images."""
    min_group_size: int = Field(default=4, ge=2)
    """Prompts with fewer images are left out."""
    min_sharpness: float = Field(default=0.0, ge=0)
    """Leave out images below this sharpness, see align.sharpness; 0 keeps all."""
    negative_ratio: float = Field(default=21 / 37, gt=0)
    """Non-preferred images for each preferred one, at most; with several dimensions, of each dimension."""
    dimension_scale: float = Field(default=10.0, gt=0)
    """What the scores of the rewards in `dimension_identifiers` are multiplied by: those of RAHF are in [0, 1]."""


class RegularizationSettings(Settings):
    """Ordinary images, mixed in so that the model does not drift; the control is trained on them alone."""

    train_data_dir: Path | None = None
    """An imagefolder with captions; `sandbox:mix` for what the sandbox's model was trained on; null for images that the
    base model draws of the training prompts."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Images that it draws of each prompt, where there is no folder."""
    ratio: float = Field(default=200 / 58, gt=0)
    """How many are mixed in for each selected image."""


class EmbeddingSettings(Settings):
    """An embedding that is learned in place of the identifier's words (arXiv 2208.01618)."""

    max_train_steps: int = Field(default=0, ge=0)
    """Steps in which it is learned from the non-preferred images, before the LoRA; 0 leaves the words as they are."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Step size of AdamW at its highest; all else is as for the LoRA."""
