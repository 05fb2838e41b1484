"""Write the numbers of docs/results.md anew: the sandbox's critic, and its baselines, on the test split.

python -m benchmarks.results

What it needs is made first, where it is not there: the pictures (some minutes), and a ResNet-50 that learns from them.
The page with the best and the worst examples is runs/results/rahf/report.html.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.device import pick_device, set_threads
from align.state import atomic_path
from recipes.baselines import resolve_rewards
from recipes.configs.evaluate_reward import EvaluateRewardConfig
from recipes.evaluate_reward import TABLE, check_place, run
from recipes.rich_rows import read_rows
from recipes.run_folder import environment
from recipes.sandbox_feedback import resolve_data
from rewards.base import Reward
from rewards.load import load_reward
from rewards.rahf.critic import Rahf

REWARDS = ("sandbox-rahf", "resnet50", "clip-gradient")
ROOT = Path(__file__).parents[1]
PAGE, BUILT = ROOT / "docs/results.md", ROOT / "sandbox/.build/rahf"
"""The page, and where `python -m sandbox.build rahf` leaves both forms, of which the better one is shipped."""
FORMS = {"multi-head": False, "augmented-prompt": True}
"""The folders of the forms there, and whether the prompt directs the heads."""
OUT, PACKAGES = Path("runs/results/rahf"), ("torch", "transformers", "diffusers")


def main(rewards: Sequence[str] = REWARDS, page: Path = PAGE, built: Path = BUILT) -> None:
    """Judge the first reward and the others, and put the tables between the page's markers."""
    config = EvaluateRewardConfig(rewards=[*rewards], data="sandbox-test", split="test", output_dir=OUT)
    check_place(OUT)
    threads, device = set_threads(), pick_device(config.device)
    data, split = resolve_data(config.data)
    rows, problems = read_rows(data, split or "test", config.max_missing)
    names = resolve_rewards(config.rewards, config.data, config.device)
    loaded = {name: load_reward(spec, device) for name, spec in names.items()}
    forms = other_forms(loaded[rewards[0]], built)
    loaded |= {name: load_reward(str(folder), device) for name, folder in forms.items()}
    found = run(config, loaded, rows, problems)
    lines = [origin(found, environment(str(device), threads, processes=1)), *form_of(rewards[0], loaded[rewards[0]])]
    replace_section(page, "rahf", "\n".join([*lines, "", (OUT / TABLE).read_text(encoding="utf-8")]))
    print(f"{page} is written; the examples are in {OUT}")


def other_forms(first: Reward, built: Path) -> dict[str, Path]:
    """The trained forms of RAHF that are there, by the names of their rows, without the one that `first` is."""
    own = first.config.prompted if isinstance(first, Rahf) else None
    folders = {form: built / form / "reward" for form, prompted in FORMS.items() if prompted != own}
    return {f"RAHF, {form}": folder for form, folder in folders.items() if folder.is_dir()}


def form_of(name: str, reward: Reward) -> list[str]:
    """A line that says which form a RAHF is of; none for another reward."""
    return [f"{name} has the form {form}." for form, prompted in FORMS.items() if _is(reward, prompted)]


def _is(reward: Reward, prompted: bool) -> bool:
    return isinstance(reward, Rahf) and reward.config.prompted == prompted


def origin(found: Mapping[str, Any], place: Mapping[str, Any]) -> str:
    """A line that says what was judged, and by which code, where."""
    versions = ", ".join(f"{name} {place['versions'][name]}" for name in PACKAGES)
    return (
        f"{found['images']:,} images of {found['prompts']:,} prompts; in brackets 95 % intervals over prompts. Written "
        f"by `python -m benchmarks.results` at commit {place['git_commit']} on {place['device']}, {versions}."
    )


def replace_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers NAME: begin and NAME: end of a page, in place of what is there.

    Raises:
        ValueError: Not one of each, in this order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    parts = re.split(f"({begin}|{end})", page.read_text(encoding="utf-8"))
    if parts[1::2] != [begin, end]:
        raise ValueError(f"{page} must have one line {begin} and below it one line {end}; it has {parts[1::2]}.")
    with atomic_path(page) as temporary:
        temporary.write_text("".join([parts[0], begin, f"\n{text.strip()}\n", *parts[3:]]), encoding="utf-8")


if __name__ == "__main__":
    main()
