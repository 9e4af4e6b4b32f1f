"""How arms stand to each other: dots on one line, quality against cost, one dot per seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from limbeck.report import units
from limbeck.report.figures import TEXT, WIDTH, Chart, axes, canvas, chart, inline, pixels, shorten, width_of, write
from limbeck.report.labels import Metric, short
from limbeck.report.palette import Style, sentinel

ROW = 38
NEAR = 8
LABELS = 136
"""The most pixels that the names beside a figure's rows may take."""

_BETTER = {
    ("x", "lower"): " · ← better", ("x", "higher"): " · better →", ("x", None): "",
    ("y", "lower"): " · ↓ better", ("y", "higher"): " · ↑ better", ("y", None): "",
}  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """One line of a dot plot: values of one arm, and an interval around them where one is known."""

    label: str
    style: Style
    values: tuple[float, ...]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Spot:
    """One point of a plot of quality against cost."""

    label: str
    style: Style
    x: float
    y: float


@chart
def dots(key: str, title: str, rows: Sequence[Row], metric: Metric, caption: str = "") -> Chart | None:
    """A row for each arm: a dot for each value, a bar at the mean of several, a thin line for an interval."""
    rows = [row for row in rows if row.values]
    if not rows:
        return None
    means = [units.mean(row.values) for row in rows]
    texts = [units.spread(row.values, metric.unit) for row in rows]
    left = min(LABELS, max(1.06 * width_of(row.label, TEXT) for row in rows)) + 14
    right = max(width_of(text, TEXT) for text in texts) + 12
    figure = canvas(ROW * len(rows) + 44)
    ax = axes(figure, left=left, right=right, top=14, bottom=30, grid="x")
    ends = [v for row in rows for v in (*row.values, *(row.interval or ()))]
    _span(ax.set_xlim, ends, 0.1)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.yaxis.set_major_locator(NullLocator())
    _ticks(ax, "x", metric.unit)
    for i, (row, mean) in enumerate(zip(rows, means, strict=True)):
        _draw_row(ax, i, row, mean)
    if rows[0].style.colour == "teacher" and len(rows) > 1:
        ax.axvline(means[0], color=sentinel("teacher"), linewidth=1, dashes=(4, 3), zorder=1)
    _row_labels(figure, ax, rows, texts)
    says = f"{metric.label}: " + ", ".join(f"{r.label} {t}" for r, t in zip(rows, texts, strict=True))
    return Chart(key, title, inline(figure, key, says), caption)


@chart
def tradeoff(
    key: str,
    title: str,
    spots: Sequence[Spot],
    cost: Metric,
    quality: Metric,
    *,
    frontier: bool = False,
    caption: str = "",
) -> Chart | None:
    """Quality (up) against a cost (across), each arm named beside its point; the best trades joined by a line."""
    spots = [s for s in spots if math.isfinite(s.x) and math.isfinite(s.y)]
    if len(spots) < 2:
        return None
    figure, ax, scale = _tradeoff_axes(spots, cost, quality)
    best = _frontier(ax, spots, quality, cost) if frontier else []
    for s in spots:
        ax.plot([s.x], [s.y], s.style.marker, color=sentinel(s.style.colour), markersize=9, clip_on=False, zorder=3,
                markeredgecolor=sentinel("paper"), markeredgewidth=1)  # fmt: skip
    _name_spots(figure, ax, spots, best)
    height = figure.get_size_inches()[1] * 72
    write(figure, 0, height - 12, f"{quality.label}{_BETTER['y', quality.better]}", "muted")
    write(figure, WIDTH, 4, f"{short(cost)}{scale}{_BETTER['x', cost.better]}", "muted", ha="right")
    says = f"{quality.label} against {cost.name}: " + "; ".join(
        f"{s.label} {units.quantity(s.y, quality.unit)} at {units.quantity(s.x, cost.unit)}" for s in spots
    )
    return Chart(key, title, inline(figure, key, says), caption)


def _draw_row(ax: Axes, i: int, row: Row, mean: float) -> None:
    colour = sentinel(row.style.colour)
    if row.interval:
        ax.plot(row.interval, [i, i], color=colour, linewidth=2, solid_capstyle="round", zorder=2)
    if len(row.values) == 1:
        ax.plot([mean], [i], row.style.marker, color=colour, markersize=10, zorder=3, clip_on=False)
        return
    offsets = 0.16 * np.array([(-1) ** n * ((n + 1) // 2) / (len(row.values) // 2) for n in range(len(row.values))])
    ax.plot(row.values, i + offsets, row.style.marker, color=colour, markersize=7, alpha=0.75, zorder=3,
            markeredgewidth=0, clip_on=False)  # fmt: skip
    ax.plot([mean, mean], [i - 0.36, i + 0.36], color=colour, linewidth=2, solid_capstyle="butt", zorder=4)


def _row_labels(figure: Figure, ax: Axes, rows: Sequence[Row], texts: Sequence[str]) -> None:
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        y = pixels(ax, 0, i)[1]
        bold = row.style.colour == "student"
        label = shorten(row.label, LABELS / 1.06, TEXT)
        write(figure, 0, y, label, row.style.colour, size=TEXT, va="center_baseline", bold=bold)
        write(figure, WIDTH, y, text, "ink", size=TEXT, ha="right", va="center_baseline", bold=bold)


def _tradeoff_axes(spots: Sequence[Spot], cost: Metric, quality: Metric) -> tuple[Figure, Axes, str]:
    figure = canvas(262)
    low, high = min(s.x for s in spots), max(s.x for s in spots)
    ticks = _tick_texts([s.y for s in spots], quality.unit)
    left = max(width_of(t) for t in ticks) + 12
    ax = axes(figure, left=left, right=22, top=30, bottom=42, grid="both")
    _span(ax.set_ylim, [s.y for s in spots], 0.22)
    _ticks(ax, "y", quality.unit)
    log = low > 0 and high / low > 4
    if log:
        ax.set_xscale("log")
        margin = (high / low) ** 0.12
        ax.set_xlim(low / margin, high * margin)
        ax.xaxis.set_major_locator(FixedLocator(log_ticks(low / margin, high * margin)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, cost.unit)))
    else:
        _span(ax.set_xlim, [s.x for s in spots], 0.16)
        _ticks(ax, "x", cost.unit)
    return figure, ax, ", log scale" if log else ""


def log_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values in [low, high] for a logarithmic axis, evenly far apart, at most ``most`` if some are."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for subs, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 5)):
        found = [sub * 10.0**d for d in decades if d % every == 0 for sub in subs]
        found = [v for v in found if low <= v <= high]
        if len(found) <= most:
            break
    return found


def _frontier(ax: Axes, spots: Sequence[Spot], quality: Metric, cost: Metric) -> list[Spot]:
    """Join the points that no other beats on both sides, in steps: until the next one is paid for, the last counts."""
    best: list[Spot] = []
    for s in sorted(spots, key=lambda s: (-cost.gain(s.x, 0), -quality.gain(s.y, 0))):
        if not best or quality.gain(s.y, best[-1].y) > 0:
            best.append(s)
    if len(best) > 1:
        ax.step([s.x for s in best], [s.y for s in best], where="post", color=sentinel("muted"), linewidth=1,
                dashes=(4, 3), zorder=2)  # fmt: skip
    return best


def _name_spots(figure: Figure, ax: Axes, spots: Sequence[Spot], best: Sequence[Spot]) -> None:
    width, height = figure.get_size_inches() * 72
    frame = (ax.get_position().x0 * width - 4, 44.0, width, height - 18)
    centres = [pixels(ax, s.x, s.y) for s in spots]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    for (x, y), (next_x, next_y) in pairwise([pixels(ax, s.x, s.y) for s in best]):
        taken += [(x, y - 3, next_x, y + 3), (next_x - 3, min(y, next_y), next_x + 3, max(y, next_y))]
    for s, (x, y) in zip(spots, centres, strict=True):
        label = shorten(s.label, 150, TEXT)
        places = _around(x, y, 1.06 * width_of(label, TEXT))
        box = min(places, key=lambda b: _cost_of(b, taken, frame))
        taken.append(box)
        if places.index(box) >= NEAR:
            _leader(figure, ax, (x, y), box, s.style.colour)
        bold = s.style.colour == "student"
        write(figure, box[0], (box[1] + box[3]) / 2, label, s.style.colour, size=TEXT, va="center_baseline", bold=bold)


def _around(x: float, y: float, width: float) -> list[Box]:
    """Places for a label of that width and 14 pixels height: ``NEAR`` around a point, then farther ones beside it."""
    half, gap = width / 2, 11
    places: list[Callable[[], Box]] = [
        lambda: (x + gap, y - 7, x + gap + width, y + 7),
        lambda: (x - gap - width, y - 7, x - gap, y + 7),
        lambda: (x - half, y + 9, x + half, y + 23),
        lambda: (x - half, y - 23, x + half, y - 9),
        lambda: (x - width + 6, y + 9, x + 6, y + 23),
        lambda: (x - width + 6, y - 23, x + 6, y - 9),
        lambda: (x - 6, y + 9, x + width - 6, y + 23),
        lambda: (x - 6, y - 23, x + width - 6, y - 9),
    ]
    near = [place() for place in places]
    levels = [y + sign * 15 * step for step in range(1, 9) for sign in (1, -1)]
    return near + [(left, v - 7, left + width, v + 7) for v in levels for left in (x + 22, x - 22 - width)]


def _leader(figure: Figure, ax: Axes, spot: tuple[float, float], box: Box, colour: str) -> None:
    """A thin line from a point to the label that found no place beside it."""
    end = (box[0] - 2 if box[0] > spot[0] else box[2] + 2, (box[1] + box[3]) / 2)
    width, height = figure.get_size_inches() * 72
    corners = [(x / width, y / height) for x, y in (spot, end)]
    ax.plot(*zip(*corners, strict=True), color=sentinel(colour), linewidth=0.8, transform=figure.transFigure,
            clip_on=False, zorder=2)  # fmt: skip


def _cost_of(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """How bad a place for a label is: what it covers, and three times what lies outside the frame."""
    outside = _area(box) - _area(_common(box, frame))
    return 3 * outside + sum(_area(_common(box, other)) for other in taken)


def _common(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _span(set_limits: Callable[[float, float], object], values: Sequence[float], pad: float) -> None:
    low, high = min(values), max(values)
    room = pad * (high - low) or abs(high) * 0.05 or 1.0
    set_limits(low - room, high + room)


def _ticks(ax: Axes, which: str, unit: str) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(3 if which == "x" else 4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, unit)))


def _tick_texts(values: Sequence[float], unit: str) -> list[str]:
    low, high = min(values), max(values)
    room = 0.22 * (high - low) or abs(high) * 0.05 or 1.0
    places = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low - room, high + room)
    return [units.tick(float(v), unit) for v in places]
