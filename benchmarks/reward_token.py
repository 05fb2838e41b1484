"""Write the numbers of docs/reward-token.md anew: all presets of the sandbox, in tables and a plot.

python -m benchmarks.reward_token

The presets are run first (the first one for about 25 minutes on two cores, the others less), or continued where they
were stopped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.report.figures import guidance_chart
from align.report.templates import number, signed
from align.state import atomic_path, read_json
from benchmarks.results import replace_section
from recipes import cli
from recipes.token_arms import BASE, TUNED

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reward-token.md"
RUNS = {
    "sandbox": Path("runs/sandbox-token"),
    "sandbox_learned": Path("runs/sandbox-token-learned"),
    "sandbox_dimensions": Path("runs/sandbox-token-dimensions"),
    "sandbox_levels": Path("runs/sandbox-token-levels"),
}
"""Presets, and where they write; the first one's images are what the others select from."""
STYLE = (
    "svg{font:11px sans-serif;background:#fff}text{fill:#656a72}.rule{stroke:#e3e0d9}polyline{fill:none;stroke-width:2}"
    ".curve,.whisker{stroke:#0d7666}.mark{stroke:#b23c26;stroke-dasharray:5 4}.dot{fill:#1c1e22}"
)
Line = Mapping[str, Any]


def main() -> int:
    """Run what is not finished, and write the page."""
    for preset in RUNS:
        if code := cli.main(["reward-token", "--config", preset]):
            return code
    write(PAGE, RUNS)
    print(f"{PAGE} is written")
    return 0


def write(page: Path, runs: Mapping[str, Path]) -> None:
    """Put the results of runs into the sections of the page that have their presets' names, and the plot beside it.

    Raises:
        ValueError: The page lacks the markers of a section.
    """
    headlines = {preset: _headline(read_json(run / "evaluation/result.json")) for preset, run in runs.items()}
    replace_section(page, "all", summary(headlines))
    for preset, run in runs.items():
        effects = run / "evaluation/dimensions.json"
        tables = [table(headlines[preset]), *map(effects_table, read_json(effects) if effects.exists() else [])]
        replace_section(page, preset, "\n\n".join(tables))
    points = next(iter(runs.values())) / "evaluation/guidance.json"
    with atomic_path(page.with_name(f"{page.stem}-guidance.svg")) as temporary:
        temporary.write_text(plot(read_json(points)), encoding="utf-8")


def _headline(rows: Sequence[Line]) -> list[Line]:
    """The first row's measure, of every comparison."""
    return [row for row in rows if (row["reward"], row["dimension"]) == (rows[0]["reward"], rows[0]["dimension"])]


def summary(headlines: Mapping[str, Sequence[Line]]) -> str:
    """Each run as it is meant to be used, against the base model and against itself without its words."""
    lines = [
        "| preset | pairs | base model | as meant | difference | 95 % interval | of it by the words | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for preset, rows in headlines.items():
        base, without = rows[:2]
        cells = [f"`{preset}`", f"{base['n']:,}", number(base["base_mean"]), number(base["tuned_mean"])]
        cells += [cell for row in (base, without) for cell in (signed(row["difference"]), interval(row))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Sequence[Line]) -> str:
    """The comparisons of a run, as Markdown."""
    first = rows[0]
    lines = [
        f"{first['reward']} {first['dimension']}, {first['n']:,} pairs:",
        "",
        "| drawn in this way | against | that mean | this mean | difference | 95 % interval | pairs won |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        means = f"{number(row['base_mean'])} | {number(row['tuned_mean'])} | {signed(row['difference'])}"
        ways = f"{row['arm_title']} | {row['against_title']}"
        lines.append(f"| {ways} | {means} | {interval(row)} | {row['win_rate']:.1%} |")
    return "\n".join(lines)


def effects_table(effects: Mapping[str, Any]) -> str:
    """What the words of each dimension do to each dimension, as Markdown."""
    lines = [
        f"{effects['title']}, in standard deviations of each measure:",
        "",
        f"| measure | {' | '.join(effects['treatments'])} | own minus best other | 95 % interval |",
        f"| --- | {'---: | ' * len(effects['treatments'])}---: | ---: |",
    ]
    for own, (measure, means) in enumerate(zip(effects["measures"], effects["means"], strict=True)):
        cells = [f"**{signed(mean)}**" if column == own else signed(mean) for column, mean in enumerate(means)]
        margin = effects["margins"][own]
        lines.append(f"| {measure} | {' | '.join(cells)} | {signed(margin['value'])} | {interval(margin)} |")
    return "\n".join(lines)


def interval(row: Line) -> str:
    """Both ends."""
    return f"{signed(row['ci_low'])} to {signed(row['ci_high'])}"


def plot(points: Sequence[Line]) -> str:
    """The curve over the guidance scale, as a file of its own."""
    base, tuned = (
        [
            (point["guidance_scale"], point["mean"], point["ci_low"], point["ci_high"])
            for point in points
            if point["arm"] == name
        ]
        for name in (BASE.name, TUNED)
    )
    svg = str(guidance_chart(base, tuned)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, rest = svg.split(">", 1)
    return f"{head}><style>{STYLE}</style>{rest}\n"


if __name__ == "__main__":
    raise SystemExit(main())
