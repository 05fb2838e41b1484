"""Drawing in every way, with the same prompts and seeds, and what the scores say of one way against another."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from align.evaluate import Row, mean_interval
from align.lora import eject, load_lora
from align.model import TextToImage
from align.prefixed import Prefixed
from align.state import write_json
from recipes.configs.reward_token import RewardTokenConfig
from recipes.judge import Judge, Judged
from recipes.token_arms import BASE, TUNED, Arm, Ways

Result = TypeVar("Result")


@dataclass(frozen=True)
class Comparison:
    """One way against another, by every reward."""

    arm: Arm
    against: Arm
    rows: Sequence[Row]


@dataclass(frozen=True)
class GuidancePoint:
    """The mean of the headline's score over the held-out prompts at a guidance scale, with its 95 % interval."""

    guidance_scale: float
    arm: str
    mean: float
    ci_low: float
    ci_high: float
    n: int


def judge_arms(
    config: RewardTokenConfig, ways: Ways, judge: Judge, prompts: Sequence[str], names: Sequence[str], folder: Path
) -> dict[str, Judged]:
    """Images and scores of each way, by its name."""

    def judged(arm: Arm) -> Judged:
        place = folder / "evaluation" / arm.name
        n = config.evaluate.samples_per_prompt
        return as_arm(judge, arm)(prompts, names, n, place, config.seed + 1)

    return _each(judge.model, folder, ways.arms, judged)


def judge_guidance(
    config: RewardTokenConfig, ways: Ways, judge: Judge, prompts: Sequence[str], headline: str, folder: Path
) -> list[GuidancePoint]:
    """The base model and the tuned one, as it is meant to be used, at other guidance scales."""

    def points(arm: Arm) -> list[GuidancePoint]:
        return [guidance_point(config, judge, prompts, headline, folder, arm, scale) for scale in scales]

    scales = sorted(set(config.evaluate.guidance_scales))
    by_arm = _each(judge.model, folder, (BASE, ways.of(TUNED)), points) if scales else {}
    found = [point for some in by_arm.values() for point in some]
    if judge.accelerator.is_main_process and found:
        write_json(folder / "evaluation" / "guidance.json", [asdict(point) for point in found])
    return found


def guidance_point(
    config: RewardTokenConfig,
    judge: Judge,
    prompts: Sequence[str],
    headline: str,
    folder: Path,
    arm: Arm,
    scale: float,
) -> GuidancePoint:
    """One way at one guidance scale."""
    n, place = config.evaluate.guidance_samples_per_prompt, folder / "evaluation" / f"guidance-{scale:g}" / arm.name
    draw = as_arm(judge, arm)
    scaled = replace(draw, sampling=replace(draw.sampling, guidance_scale=scale))
    scores = scaled(prompts, [headline], n, place, config.seed + 1).first(headline)
    mean, low, high = (values.item() for values in mean_interval(scores.mean(1, keepdim=True), config.seed))
    return GuidancePoint(scale, arm.name, mean, low, high, scores.numel())


def as_arm(judge: Judge, arm: Arm) -> Judge:
    """The judge, drawing in this way; the LoRA is not its business."""
    negative = judge.sampling.negative_prompt if arm.negative is None else arm.negative
    model = Prefixed(judge.model, arm.prefix) if arm.prefix else judge.model
    return replace(judge, model=model, sampling=replace(judge.sampling, negative_prompt=negative))


def compare_arms(judge: Judge, ways: Ways, judged: Mapping[str, Judged], seed: int) -> list[Comparison]:
    """All comparisons, the headline first."""
    return [
        Comparison(ways.of(arm), ways.of(other), judge.compare(judged[other], judged[arm], seed))
        for arm, other in ways.pairs
    ]


def as_rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """The lines of `evaluation/result.json`: `tuned_mean` is that of `arm`, `base_mean` that of `against`."""
    return [
        {
            "arm": one.arm.name,
            "against": one.against.name,
            "arm_title": one.arm.title,
            "against_title": one.against.title,
            **asdict(row),
        }
        for one in comparisons
        for row in one.rows
    ]


def as_table(comparisons: Sequence[Comparison]) -> str:
    """The headline reward's first dimension for the terminal."""
    first, width = comparisons[0].rows[0], max(len(one.arm.title) for one in comparisons)
    lines = [
        f"{first.reward} {first.dimension}, {first.n:,} pairs",
        f"{'':<{width}} {'against':<32} {'mean':>8} {'difference':>11}  95 % interval       wins",
    ]
    lines += [
        f"{one.arm.title:<{width}} {one.against.title:<32} {row.tuned_mean:>8.4f} {row.difference:>+11.4f}  "
        f"[{row.ci_low:+.4f}, {row.ci_high:+.4f}] {row.win_rate:>6.1%}"
        for one in comparisons
        for row in one.rows[:1]
    ]
    return "\n".join(lines)


def _each(model: TextToImage, folder: Path, arms: Sequence[Arm], work: Callable[[Arm], Result]) -> dict[str, Result]:
    """What `work` gives of each way, by its name, with its LoRA in the model."""
    results: dict[str, Result] = {}
    for lora in dict.fromkeys(arm.lora for arm in arms):
        with _wearing(model, folder / lora if lora else None):
            results |= {arm.name: work(arm) for arm in arms if arm.lora == lora}
    return results


@contextmanager
def _wearing(model: TextToImage, lora: Path | None) -> Generator[None, None, None]:
    if lora is None:
        yield
        return
    load_lora(model, lora)
    try:
        yield
    finally:
        eject(model.denoiser)
