"""The results of a reward-token run in a page of the documentation: the table between its markers, and the plot.

python -m recipes.token_page runs/sandbox-token docs/reward-token.md
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.report.figures import guidance_chart
from align.report.templates import number, signed
from align.state import atomic_path, read_json
from recipes.token_arms import ARMS, BASE, TUNED

START, END = "<!-- results of the sandbox preset -->", "<!-- end of results -->"
STYLE = (
    "svg{font:11px sans-serif;background:#fff}text{fill:#656a72}.rule{stroke:#e3e0d9}polyline{fill:none;stroke-width:2}"
    ".curve,.whisker{stroke:#0d7666}.mark{stroke:#b23c26;stroke-dasharray:5 4}.dot{fill:#1c1e22}"
)


def main(argv: Sequence[str]) -> int:
    """Write the results of the run `argv[0]` into the page `argv[1]`, and the plot beside it."""
    if len(argv) != 2:
        print("usage: python -m recipes.token_page RUN PAGE", file=sys.stderr)
        return 1
    run, page = map(Path, argv)
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise ValueError(f"{page} must hold the lines {START} and {END}; the results go between them.")
    before, rest = text.split(START)
    rows = read_json(run / "evaluation" / "result.json")
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{START}\n{table(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    points = run / "evaluation" / "guidance.json"
    if points.exists():
        with atomic_path(page.with_name(f"{page.stem}-guidance.svg")) as temporary:
            temporary.write_text(plot(read_json(points)), encoding="utf-8")
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The headline's row of each comparison, as Markdown."""
    first, titles = rows[0], {arm.name: arm.title for arm in ARMS}
    lines = [
        f"{first['reward']} {first['dimension']}, {first['n']:,} pairs:",
        "",
        "| drawn in this way | against | that mean | this mean | difference | 95 % interval | pairs won |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    headline = [row for row in rows if (row["reward"], row["dimension"]) == (first["reward"], first["dimension"])]
    for row in headline:
        means = f"{number(row['base_mean'])} | {number(row['tuned_mean'])} | {signed(row['difference'])}"
        interval = f"{signed(row['ci_low'])} to {signed(row['ci_high'])}"
        ways = f"{titles[row['arm']]} | {titles[row['against']]}"
        lines.append(f"| {ways} | {means} | {interval} | {row['win_rate']:.1%} |")
    return "\n".join(lines)


def plot(points: Sequence[Mapping[str, Any]]) -> str:
    """The curve over the guidance scale, as a file of its own."""
    base, tuned = (
        [
            (point["guidance_scale"], point["mean"], point["ci_low"], point["ci_high"])
            for point in points
            if point["arm"] == arm.name
        ]
        for arm in (BASE, TUNED)
    )
    svg = str(guidance_chart(base, tuned)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, rest = svg.split(">", 1)
    return f"{head}><style>{STYLE}</style>{rest}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
