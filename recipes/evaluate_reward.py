"""Measure how far rewards agree with people (arXiv 2312.10240, section 4): scores, heatmaps, misaligned words.

    align evaluate-reward runs/rahf/reward resnet50 clip-gradient --data sandbox-test

judge every image of the split by every reward -> PLCC and SRCC, saliency metrics, precision, recall and F1, each with
an interval over prompts -> tables, `result.json`, `table.md`, and a page with the best and the worst examples.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from align.device import pick_device, set_threads
from align.log import Log
from align.report.agreement import write_agreement
from align.state import atomic_path, read_json, write_json
from recipes.agreement_page import page
from recipes.agreement_table import Agreed, table
from recipes.agreement_text import as_markdown
from recipes.baselines import resolve_rewards
from recipes.configs.evaluate_reward import EvaluateRewardConfig
from recipes.configuration import launch
from recipes.reward_names import announce
from recipes.rich_rows import read_rows
from recipes.sandbox_feedback import resolve_data
from recipes.settings import as_yaml
from rewards.agreement import Agreement, check_comparable, judge
from rewards.base import Reward
from rewards.datasets.rich_feedback import Problem, RichFeedback
from rewards.load import load_reward
from rewards.saliency import MIT, RICHHF

RESULT, TABLE, PAGE = "result.json", "table.md", "report.html"
CONVENTIONS = {"richhf": RICHHF, "mit": MIT}


def main(config: EvaluateRewardConfig, *, dry_run: bool = False) -> None:
    """Judge, and tell; or say what would be judged."""
    if dry_run:
        print(f"{as_yaml(config)}plan: {', '.join(config.rewards)} on {config.data}, into {config.output_dir}")
        return
    check_place(config.output_dir)
    set_threads()
    with redirect_stdout(sys.stderr if config.format == "json" else sys.stdout):
        data, split = resolve_data(config.data)
        chosen = config.split or split or "test"
        rows, problems = read_rows(data, chosen, config.max_missing)
        names = resolve_rewards(config.rewards, config.data, config.device)
        announce([*names.values()])
        device = pick_device(config.device)
        rewards = {name: load_reward(spec, device) for name, spec in names.items()}
    found = run(config.model_copy(update={"split": chosen}), rewards, rows, problems)
    print(json.dumps(found, indent=2, allow_nan=False) if config.format == "json" else as_text(config, found))


def run(
    config: EvaluateRewardConfig,
    rewards: Mapping[str, Reward],
    rows: Sequence[RichFeedback],
    problems: Sequence[Problem] = (),
) -> dict[str, Any]:
    """Judge rows by built rewards, write all files, and return what `result.json` holds."""
    out = config.output_dir
    for name, reward in rewards.items():
        check_comparable(name, reward)
    with Log(out) as log:
        agreements = {name: _judged(config, name, reward, rows, log) for name, reward in rewards.items()}
    found = table(agreements, rows, config.seed, config.resamples)
    result = as_json(config, rows, found, problems)
    write_json(out / RESULT, result)  # first: it tells whose the others are
    with atomic_path(out / TABLE) as temporary:
        temporary.write_text(as_markdown(found), encoding="utf-8")
    first = next(iter(rewards))
    write_agreement(out / PAGE, page(config, first, rewards[first], agreements[first], rows, found))
    return result


def check_place(out: Path) -> None:
    """Refuse, with a ValueError, a folder where files of somebody else have the names of ours."""
    known = read_json(out / RESULT) if (out / RESULT).is_file() else {}
    taken = [name for name in (RESULT, TABLE, PAGE) if (out / name).exists()]
    if taken and not (isinstance(known, dict) and "conventions" in known):
        raise ValueError(
            f"{out} has {', '.join(taken)}, which no evaluation wrote, and nothing is overwritten. Give another "
            "--output_dir."
        )


def as_json(
    config: EvaluateRewardConfig, rows: Sequence[RichFeedback], found: Sequence[Agreed], problems: Sequence[Problem]
) -> dict[str, Any]:
    """All numbers; what is not defined is null."""
    return {
        "data": config.data,
        "split": config.split,
        "images": len(rows),
        "prompts": len({row.prompt for row in rows}),
        "left_out": len(problems),
        "conventions": config.conventions,
        "resamples": config.resamples,
        "rows": [{key: None if value != value else value for key, value in one.as_json().items()} for one in found],
    }


def as_text(config: EvaluateRewardConfig, found: Mapping[str, Any]) -> str:
    """What is printed."""
    where = f"{found['images']:,} images of {found['prompts']:,} prompts of {config.data}"
    tables = (config.output_dir / TABLE).read_text(encoding="utf-8")
    return f"{where}; intervals of 95 % over prompts\n\n{tables}\nThe page: {config.output_dir / PAGE}"


def _judged(
    config: EvaluateRewardConfig, name: str, reward: Reward, rows: Sequence[RichFeedback], log: Log
) -> Agreement:
    device, conventions = pick_device(config.device), CONVENTIONS[config.conventions]
    with log.progress(len(rows), f"judge by {name}") as progress:
        return judge(reward, rows, config.batch_size, device, progress.update, conventions)


if __name__ == "__main__":
    launch(EvaluateRewardConfig, main)
