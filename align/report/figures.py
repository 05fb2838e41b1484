"""Small inline SVG figures: text in, colours by CSS class, nothing to load and no script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
BINS = 32  # bars of a histogram, at most

Points = Sequence[tuple[int | float, float]]


@dataclass(frozen=True)
class _Frame:
    """Data coordinates on the paper of a chart; `log2` draws x on a logarithmic axis."""

    x: tuple[float, float]
    y: tuple[float, float]
    log2: bool = False

    def place(self, x: int | float, y: int | float) -> tuple[float, float]:
        """The pixel of a data point."""
        low, high, value = (math.log2(v) if self.log2 else v for v in (*self.x, x))
        across = (value - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Points, kind: str) -> Markup:
        """A polyline of CSS class `kind`."""
        return Markup('<polyline class="{}" points="{}"/>').format(kind, self._path(points))

    def band(self, lows: Points, highs: Points) -> Markup:
        """The area between two lines."""
        return Markup('<polygon class="band" points="{}"/>').format(self._path([*highs, *reversed(lows)]))

    def whiskers(self, lows: Points, highs: Points) -> Markup:
        """An upright line from each low to its high."""
        whisker = Markup('<path class="whisker" d="M{:.1f} {:.1f}V{:.1f}"/>')
        ends = [(*self.place(*low), self.place(*high)[1]) for low, high in zip(lows, highs, strict=True)]
        return Markup("").join(whisker.format(*end) for end in ends)

    def dots(self, points: Points) -> Markup:
        """A dot at each point, which tells its values when pointed at."""
        dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{:g}: {:.4g}</title></circle>')
        return Markup("").join(dot.format(*self.place(*point), *point) for point in points)

    def _path(self, points: Points) -> str:
        return " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in points)

    def axes(self, x_ticks: Sequence[int | float], x_label: str, y_percent: bool = False) -> Markup:
        """Grid lines, tick labels and the name of x."""
        parts = [self._x_tick(tick) for tick in x_ticks]
        parts += [self._y_tick(tick, f"{tick:.0%}" if y_percent else f"{tick:g}") for tick in ticks(*self.y)]
        name = Markup('<text class="name" x="{}" y="{}" text-anchor="middle">{}</text>')
        return Markup("").join([*parts, name.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label)])

    def _x_tick(self, tick: int | float) -> Markup:
        x, _ = self.place(tick, self.y[0])
        text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
        return text.format(x, HEIGHT - BOTTOM + 15, f"{tick:,g}" if abs(tick) < 1e5 else f"{tick / 1000:,g}k")

    def _y_tick(self, tick: float, label: str) -> Markup:
        _, y = self.place(self.x[0], tick)
        rule = Markup('<path class="rule" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
        return rule + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 3.5, label)


def best_of_k_chart(
    means: Sequence[float], tuned_mean: float | None, lows: Sequence[float] = (), highs: Sequence[float] = ()
) -> Markup:
    """Expected best score of k samples over k = 1..n, with the tuned model's mean as a dashed line.

    `lows` and `highs` are the ends of the interval of each mean, drawn as a band; empty where there is none.
    """
    points, lower, upper = (list(enumerate(values, start=1)) for values in (means, lows, highs))
    shown = [*means, *lows, *highs] if tuned_mean is None else [*means, *lows, *highs, tuned_mean]
    frame = _Frame((1.0, float(max(2, len(means)))), _padded(shown), log2=True)
    powers = [2**exponent for exponent in range(int(math.log2(max(2, len(means)))) + 1)]
    parts = [frame.axes(powers, "k"), frame.line(points, "curve"), frame.dots(points)]
    if lower:
        parts.insert(1, frame.band(lower, upper))
    if tuned_mean is not None:
        parts.append(frame.line([(1, tuned_mean), (max(2, len(means)), tuned_mean)], "mark"))
    return _svg(parts, f"Expected best of k: {means[0]:.4g} at 1, {means[-1]:.4g} at {len(means)}")


def rounds_chart(base_mean: float, means: Points, lows: Points, highs: Points) -> Markup:
    """Mean score after each round with its interval; round 0 is the base model, also drawn as a dashed line."""
    points: Points = [(0, base_mean), *means]
    x_range = (-0.2, points[-1][0] + 0.2)  # air for the whiskers of the last round
    frame = _Frame(x_range, _padded([y for _, y in (*points, *lows, *highs)]))
    parts = [
        frame.axes(_whole_ticks(*x_range), "round"),
        frame.line([(x, base_mean) for x in x_range], "mark"),
        frame.whiskers(lows, highs),
        frame.line(points, "curve"),
        frame.dots(points),
    ]
    return _svg(parts, f"Mean score, {base_mean:.4g} of the base model, {points[-1][1]:.4g} after the last round")


def guidance_chart(
    base: Sequence[tuple[float, float, float, float]], tuned: Sequence[tuple[float, float, float, float]]
) -> Markup:
    """Mean scores of both models over the guidance scale, as (scale, mean, low, high)."""
    everything = [*base, *tuned]
    scales = sorted({point[0] for point in everything})
    frame = _Frame((scales[0] - 0.1, scales[-1] + 0.1), _padded([y for point in everything for y in point[1:]]))
    parts = [frame.axes(ticks(*frame.x), "guidance scale")]
    for points, kind in ((base, "mark"), (tuned, "curve")):
        means, lows, highs = ([(point[0], point[column]) for point in points] for column in (1, 2, 3))
        parts += [frame.whiskers(lows, highs), frame.line(means, kind), frame.dots(means)]
    return _svg(parts, f"Mean score at guidance scales from {scales[0]:g} to {scales[-1]:g}, base and tuned model")


def series_chart(points: Points) -> Markup:
    """A score over the steps of the training."""
    frame = _Frame(_steps([x for x, _ in points]), _padded([y for _, y in points]))
    parts = [frame.axes(_whole_ticks(*frame.x), "step"), frame.line(points, "curve"), frame.dots(points)]
    first, last = points[0], points[-1]
    return _svg(parts, f"Mean score, {first[1]:.4g} at step {first[0]:g}, {last[1]:.4g} at step {last[0]:g}")


def loss_chart(losses: Points) -> Markup:
    """Training loss over steps: block means of at most 200 blocks, and their moving average."""
    blocks = np.array_split(np.asarray(losses, dtype=float), min(200, len(losses)))
    steps, values = np.array([block.mean(axis=0) for block in blocks]).T
    width = max(1, len(values) // 10)
    smooth = [values[max(0, i - width) : i + width + 1].mean() for i in range(len(values))]
    low, high = np.quantile(values, [0.0, 0.98])
    frame = _Frame(_steps(steps), _padded([float(low), float(high)]))
    clipped = values.clip(max=frame.y[1])
    parts = [
        frame.axes(_whole_ticks(*frame.x), "step"),
        frame.line(list(zip(steps, clipped, strict=True)), "faint"),
        frame.line(list(zip(steps, smooth, strict=True)), "curve"),
    ]
    return _svg(parts, f"Training loss, {values[0]:.4g} at first, {values[-1]:.4g} at the end")


def histogram(candidates: Sequence[float], selected: Sequence[float], threshold: float | None) -> Markup:
    """Share of the candidates and of the selected images over the score."""
    label = f"Scores of {len(candidates)} candidates and {len(selected)} selected images"
    return _svg(_shares({"before": candidates, "after": selected}, BINS, "score", threshold), label)


def distribution(values: Sequence[float], name: str = "score", mark: float | None = None) -> Markup:
    """Share of the values over what `name` says they are, with a dashed line at `mark` where that is among them."""
    bins = min(BINS, max(8, 2 * math.isqrt(len(values))))
    label = f"{len(values):,} values of {name}, from {min(values):.4g} to {max(values):.4g}"
    return _svg(_shares({"after": values}, bins, name, mark), label)


def _shares(values: Mapping[str, Sequence[float]], bins: int, name: str, mark: float | None) -> list[Markup]:
    """Axes, the bars of each kind's shares, and the mark; the first kind has the whole range."""
    edges = np.linspace(*_padded(next(iter(values.values())), share=0.0), num=bins + 1)
    heights = {kind: np.histogram(one, edges)[0] / max(len(one), 1) for kind, one in values.items()}
    frame = _Frame((float(edges[0]), float(edges[-1])), (0.0, 1.06 * float(max(map(np.max, heights.values())))))
    parts = [frame.axes(ticks(*frame.x), name, y_percent=True)]
    parts += [_bars(frame, edges, height, kind) for kind, height in heights.items()]
    if mark is not None and frame.x[0] <= mark <= frame.x[1]:
        parts.append(frame.line([(mark, frame.y[0]), (mark, frame.y[1])], "mark"))
    return parts


def cloud(points: Points, name: str) -> Markup:
    """A dot at each point; `name` is that of x."""
    x_range, y_range = (_padded([point[axis] for point in points]) for axis in (0, 1))
    frame = _Frame(x_range, y_range)
    dot = Markup('<circle class="faint" cx="{:.1f}" cy="{:.1f}" r="2"/>')
    dots = Markup("").join(dot.format(*frame.place(*point)) for point in points)
    return _svg([frame.axes(ticks(*frame.x), name), dots], f"{len(points):,} dots over {name}")


def interval(low: float, middle: float, high: float) -> Markup:
    """An interval around a difference, beside zero, on a scale of its own."""
    reach = 1.15 * max(abs(low), abs(high)) or 1.0
    x_low, x_middle, x_high = (60 + 56 * value / reach for value in (low, middle, high))
    return Markup(
        '<svg class="interval" viewBox="0 0 120 16" role="img" aria-label="{:.4g} to {:.4g}">'
        '<path class="zero" d="M60 0V16"/><path class="range" d="M{:.1f} 8H{:.1f}"/>'
        '<circle class="dot" cx="{:.1f}" cy="8" r="3.5"/></svg>'
    ).format(low, high, x_low, x_high, x_middle)


def ticks(low: float, high: float) -> list[float]:
    """At most six round numbers (1, 2 or 5 times a power of ten apart) between `low` and `high`."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _whole_ticks(low: float, high: float) -> list[float]:
    """The `ticks` of what comes in whole numbers."""
    return [tick for tick in ticks(low, high) if tick.is_integer()]


def _steps(steps: Sequence[int | float] | np.ndarray) -> tuple[float, float]:
    """The range of rising steps; never empty, also where there is one."""
    return (float(steps[0]), float(steps[-1])) if len(steps) > 1 else (0.0, float(steps[0]) + 1)


def _bars(frame: _Frame, edges: np.ndarray, heights: np.ndarray, kind: str) -> Markup:
    bar = Markup('<path class="{}" d="M{:.1f} {:.1f}H{:.1f}V{:.1f}H{:.1f}Z"/>')
    corners = [
        (*frame.place(left, height), *frame.place(right, 0))
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
        if height > 0
    ]
    return Markup("").join(bar.format(kind, x0, y0, x1 - 1, y1, x0) for x0, y0, x1, y1 in corners)


def _padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of the values with some air; never empty, also where all are equal."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = 0.1 * abs(high) or 1.0
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, label)
    return start + Markup("").join(parts) + Markup("</svg>")
