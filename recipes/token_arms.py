"""The ways of drawing that a reward token is judged by, and what each is compared with, all with the same seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipes import token_words
from recipes.configs.reward_token import RewardTokenConfig, slug
from recipes.token_words import spoken


@dataclass(frozen=True)
class Arm:
    """A way of drawing.

    Attributes:
        name: Of its folder, and in results.
        title: For people.
        lora: Where its LoRA is, in the run's folder; None for the base model.
        negative: What guidance leads away from; None for what the settings of the sampling say.
        prefix: What stands before the prompt.
    """

    name: str
    title: str
    lora: str | None
    negative: str | Mapping[str, float] | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Ways:
    """Ways of drawing, and pairs of their names: each one with what it is compared with, the headline first."""

    arms: Sequence[Arm]
    pairs: Sequence[tuple[str, str]]

    def of(self, name: str) -> Arm:
        """The one with this name."""
        return next(arm for arm in self.arms if arm.name == name)


BASE = Arm("base", "base model", None)
WITHOUT = Arm("tuned-without", "tuned, without the token", "lora")
TUNED = "tuned"
"""The name of the way that a run is for."""
CONTROL = "control/lora"
"""Where the LoRA is that is trained on ordinary images alone."""


def ways(config: RewardTokenConfig) -> Ways:
    """Those of a run."""
    if config.dimensions:
        return _of_dimensions(config)
    return _of_levels(config) if config.level_identifiers else _of_identifier(config)


def _of_identifier(config: RewardTokenConfig) -> Ways:
    words = token_words.identifier(config)
    tuned = Arm(TUNED, "tuned, away from the token", "lora", words)
    string = Arm("base-string", "base model, away from the words", None, words)
    base_asked = Arm("base-asked", "base model, asked for the words", None, prefix=words)
    asked = Arm("tuned-asked", "tuned, asked for the token", "lora", prefix=words)
    control = Arm("control", "control, away from the words", CONTROL, words)
    pairs = (
        (tuned, BASE),
        (tuned, WITHOUT),
        (tuned, control),
        (tuned, string),
        (WITHOUT, BASE),
        (string, BASE),
        (control, BASE),
        (asked, WITHOUT),
        (asked, BASE),
        (base_asked, BASE),
    )
    return Ways((BASE, string, base_asked, tuned, WITHOUT, asked, control), _names(pairs))


def _of_dimensions(config: RewardTokenConfig) -> Ways:
    tuned = Arm(TUNED, "tuned, away from all tokens", "lora", token_words.negative(config))
    string = Arm("base-string", "base model, away from all words", None, token_words.negative(config))
    away = [away_from(words) for words in config.dimensions]
    asked = [asked_for(words) for words in config.dimensions]
    pairs = [(tuned, BASE), (tuned, WITHOUT), (tuned, string), (WITHOUT, BASE), (string, BASE)]
    pairs += [(arm, WITHOUT) for arm in [*away, *asked]]
    return Ways((BASE, string, tuned, WITHOUT, *away, *asked), _names(pairs))


def _of_levels(config: RewardTokenConfig) -> Ways:
    worst, best = config.level_identifiers[0], config.level_identifiers[-1]
    tuned = Arm(TUNED, f"tuned, asked for {spoken(best)}, away from {spoken(worst)}", "lora", worst, best)
    string = Arm("base-string", "base model, with the same words", None, worst, best)
    away, asked = away_from(worst), [asked_for(words) for words in config.level_identifiers]
    pairs = [(tuned, BASE), (tuned, WITHOUT), (tuned, string), (tuned, asked[-1]), (WITHOUT, BASE), (string, BASE)]
    pairs += [(arm, WITHOUT) for arm in [away, *asked]]
    return Ways((BASE, string, tuned, WITHOUT, away, *asked), _names(pairs))


def away_from(words: str) -> Arm:
    """The tuned model, led away from these words alone."""
    return Arm(f"away-{slug(words)}", f"tuned, away from {spoken(words)}", "lora", words)


def asked_for(words: str) -> Arm:
    """The tuned model, asked for these words before the prompt."""
    return Arm(f"asked-{slug(words)}", f"tuned, asked for {spoken(words)}", "lora", prefix=words)


def _names(pairs: Sequence[tuple[Arm, Arm]]) -> list[tuple[str, str]]:
    return [(arm.name, against.name) for arm, against in pairs]
