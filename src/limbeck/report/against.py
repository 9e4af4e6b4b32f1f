"""A proxy and the truth behind it, over training and one against the other, both axes logarithmic.

A proxy that improves by a power law is a straight line here; where the truth turns back while the proxy goes on, the
student has begun to exploit what is wrong with its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from limbeck.report import units
from limbeck.report.charts import log_ticks
from limbeck.report.figures import (
    SMALL,
    WIDTH,
    Chart,
    apart,
    axes,
    canvas,
    chart,
    inline,
    pixels,
    shorten,
    width_of,
    write,
)
from limbeck.report.palette import Style, sentinel
from limbeck.report.results import Curve, Run

PROXY, GOLDEN = "health/proxy", "health/golden"
TITLES = {PROXY: "Distance from the teacher", GOLDEN: "Distance from the oracle"}
ROOM = 0.05
"""Of the logarithmic range, on either side."""

Named = tuple[str, Style, Curve]


def against_charts(run: Run) -> list[Chart | None]:
    """The proxy and the golden measure of all arms that have them; nothing where no arm has."""
    drawn: dict[str, list[Named]] = {}
    for key in TITLES:
        curves = [(arm, arm.curve(key)) for arm in run.arms]
        drawn[key] = [
            (arm.label, arm.style, _positive(c)) for arm, c in curves if c is not None and (c.y > 0).sum() > 1
        ]
    found = [
        loglog(key, f"{TITLES[key]}, on the student's own text", named, "step", TITLES[key])
        for key, named in drawn.items()
    ]
    golden = {label: curve for label, _, curve in drawn[GOLDEN]}
    pairs = [(n, s, _one_over_the_other(c, golden[n])) for n, s, c in drawn[PROXY] if n in golden]
    both = [(name, style, curve) for name, style, curve in pairs if len(curve.x) > 1]
    caption = (
        "Training goes from right to left. A line that turns up gets nearer to its teacher and away from the truth."
    )
    title = "Distance from the oracle against distance from the teacher"
    return [*found, loglog("parametric", title, both, TITLES[PROXY], TITLES[GOLDEN], caption)]


@chart
def loglog(key: str, title: str, named: Sequence[Named], across: str, up: str, caption: str = "") -> Chart | None:
    """Lines on two logarithmic axes, each named at its end."""
    if not named:
        return None
    labels = [shorten(label, 104, SMALL) for label, _, _ in named]
    figure = canvas(262)
    xs, ys = (np.concatenate([getattr(c, side) for _, _, c in named]) for side in "xy")
    ticks = log_ticks(float(ys.min()), float(ys.max()))
    left = max([0.0, *(width_of(units.tick(t, "")) for t in ticks)]) + 12
    ax = axes(figure, left=left, right=max(map(width_of, labels)) + 14, top=30, bottom=42, grid="both")
    _logarithmic(ax, "x", float(xs.min()), float(xs.max()))
    _logarithmic(ax, "y", float(ys.min()), float(ys.max()))
    for _, style, curve in named:
        ax.plot(curve.x, curve.y, color=sentinel(style.colour), linestyle=style.line, linewidth=1.6, clip_on=False)
    height = figure.get_size_inches()[1] * 72
    ends = [pixels(ax, float(c.x[-1]), float(c.y[-1]))[1] for _, _, c in named]
    low, high = ax.get_position().y0 * height + 4, ax.get_position().y1 * height
    for label, (_, style, _), y in zip(labels, named, apart(ends, 15, low, high), strict=True):
        write(figure, ax.get_position().x1 * WIDTH + 8, y, label, style.colour, va="center_baseline")
    write(figure, 0, height - 12, f"{up}, log scale", "muted")
    write(figure, ax.get_position().x1 * WIDTH, 4, f"{across}, log scale", "muted", ha="right")
    says = f"{title}. At the end: " + ", ".join(f"{n} {units.quantity(float(c.y[-1]), '')}" for n, _, c in named)
    name = f"loglog-{key.rpartition('/')[2]}"
    return Chart(name, title, inline(figure, name, says), caption)


def _positive(curve: Curve) -> Curve:
    """The points that have logarithms; steps count from 1."""
    kept = curve.y > 0
    return Curve(curve.x[kept] + 1, curve.y[kept])


def _one_over_the_other(across: Curve, up: Curve) -> Curve:
    """The values of two curves at the steps that both have, in order of the steps."""
    _, a, b = np.intersect1d(across.x, up.x, return_indices=True)
    return Curve(across.y[a], up.y[b])


def _logarithmic(ax: Axes, side: str, low: float, high: float) -> None:
    high = high if high > low else low * 1.1
    margin = (high / low) ** ROOM
    axis = ax.xaxis if side == "x" else ax.yaxis
    (ax.set_xscale if side == "x" else ax.set_yscale)("log")
    (ax.set_xlim if side == "x" else ax.set_ylim)(low / margin, high * margin)
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, "")))
