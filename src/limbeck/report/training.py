"""Training over time: losses and validation of every arm, and what each loss term contributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from limbeck.report import units
from limbeck.report.against import against_charts
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
from limbeck.report.labels import Metric, info, main_metric
from limbeck.report.palette import CATEGORICAL, Style, sentinel
from limbeck.report.results import Arm, Curve, Run, clean

POINTS = 120
"""Points that a drawn line has at most; longer logs are averaged over equal stretches."""
STUDENT = "student"
LOG_FROM, DEEPEST = 6.0, 1e6
"""Values that span more than this factor (shares apart) get a logarithmic scale, of at most so much depth."""
FAINT = 0.01
"""A term whose share of the gradient norm is below this on average is named as dead."""
HEALTH = "health/"
"""What the names of logged numbers begin with that a method gives of its health, beside its loss."""
TELLS = {
    "critic_lag": (
        "Critic lag",
        "The critic's error, as a share of what the generator follows: 0 is a perfect critic.",
    ),
    "gap": (
        "Gap of critic and teacher",
        "Over the teacher's error. Where it goes to 0, a lag that goes to 1 is no harm.",
    ),
    "proxy": ("Proxy", "How far the student is from its teacher, per token of its own text."),
    "golden": ("Golden", "How far it is from the oracle there. Up while the proxy goes down is teacher hacking."),
    "kept_mass": ("Kept mass", "How much of the teacher the clipped divergence looks at; near 0 it has collapsed."),
    "diversity": ("Variety of samples", "Squared distance of two samples of a class: 1 is as varied as the data."),
}
"""Their titles and captions."""


@dataclass(frozen=True)
class Line:
    """One named line of a plot over training."""

    label: str
    style: Style
    curve: Curve


@dataclass(frozen=True)
class TermRow:
    """What a loss term was at the end of training, and how much of the gradient it made."""

    name: str
    value: float | None
    weighted: float | None
    share: float | None
    alone: bool = False

    @property
    def dead(self) -> bool:
        """Whether the term hardly moves its learner."""
        return self.share is not None and self.share < FAINT and not self.alone


def training_charts(run: Run) -> list[Chart]:
    """Loss and validation of all arms, the student's terms, then how all went; what was not logged is left out."""
    axis = _axis(run)
    found = [_losses(run, axis), *_validations(run, axis)]
    for learner, terms in (learners(run.student) if run.student else {}).items():
        if run.student and (len(terms) > 1 or learner != STUDENT):
            found.append(term_values(run.student, axis, learner, terms))
        if run.student and len(terms) > 1:
            found.append(term_shares(run.student, axis, learner, terms))
    found += [*_healths(run, axis), *against_charts(run)]
    return [c for c in found if c is not None]


def position_charts(run: Run) -> list[Chart]:
    """Loss of language models by the place in the text: whether more context helps."""
    found = []
    for arm in run.arms:
        given = arm.details.get("nll_by_position")
        rows = (
            [(i + 1.0, v) for i, x in enumerate(given) if (v := units.finite(x)) is not None]
            if isinstance(given, list)
            else []
        )
        if len(rows) > 1:
            found.append(Line(arm.label, arm.style, Curve(*np.array(rows).T)))
    drawn = lines(
        "by-position",
        "Loss by place in the text",
        found,
        "nats",
        "token",
        "Where it keeps falling, the model uses more of the text before.",
    )
    return [drawn] if drawn else []


def learners(arm: Arm) -> dict[str, list[str]]:
    """The loss terms of an arm by who learns from them; ``role.name`` is of a learner beside the student."""
    kinds = ("term/", "share/", "weighted/")
    roles = {k.split("/", 1)[1] for k in arm.logged() if k.startswith(("lr/", "loss/"))}
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(k.split("/", 1)[1] for k in arm.logged() if k.startswith(kinds)):
        prefix = name.partition(".")[0]
        beside = "." in name and all(part in roles for part in prefix.split("+"))
        found.setdefault(prefix if beside else STUDENT, []).append(name)
    return found


def term_rows(arm: Arm) -> list[TermRow]:
    """The loss terms of an arm that has several: means over the last tenth of training, the share over all of it."""
    rows = []
    groups = learners(arm)
    if sum(map(len, groups.values())) < 2:
        return []
    for name, alone in ((name, len(terms) == 1) for terms in groups.values() for name in terms):
        value, weighted, share = (arm.curve(f"{kind}/{name}") for kind in ("term", "weighted", "share"))
        rows.append(
            TermRow(clean(name), _late(value), _late(weighted), float(share.y.mean()) if share else None, alone)
        )
    return rows


@chart
def lines(key: str, title: str, found: Sequence[Line], unit: str, axis: str, caption: str = "") -> Chart | None:
    """Lines over training, each named at its end; a logarithmic scale where the values span much."""
    if not found:
        return None
    thin = [Line(line.label, line.style, thinned(line.curve)) for line in found]
    labels = [shorten(line.label, 104, SMALL) for line in thin]
    figure, ax = _over_training([line.curve for line in thin], max(map(width_of, labels)), unit, axis)
    for line in thin:
        width = 2.2 if line.style.colour == "student" else 1.6
        look = {"color": sentinel(line.style.colour), "linewidth": width, "linestyle": line.style.line}
        ax.plot(line.curve.x, line.curve.y, **look, solid_capstyle="round", solid_joinstyle="round", clip_on=False)  # type: ignore[arg-type]
    ends = [pixels(ax, float(line.curve.x[-1]), float(line.curve.y[-1]))[1] for line in thin]
    _end_labels(figure, ax, labels, [line.style for line in thin], ends)
    says = f"{title}. At the end: " + ", ".join(
        f"{line.label} {units.quantity(float(line.curve.y[-1]), unit)}" for line in found
    )
    return Chart(key, title, inline(figure, key, says), caption)


def term_values(arm: Arm, axis: str, learner: str, terms: Sequence[str]) -> Chart | None:
    """The value of every loss term of a learner, before its weight."""
    named = [(name, arm.curve(f"term/{name}", axis=axis)) for name in terms]
    found = [Line(_own_name(n, learner), Style(_colour(i)), c) for i, (n, c) in enumerate(named) if c is not None]
    title = f"Loss terms of {_called(learner)}"
    return lines(f"values-{_place(arm, learner)}", title, found, "", axis, "Values before their weights.")


@chart
def term_shares(arm: Arm, axis: str, learner: str, terms: Sequence[str]) -> Chart | None:
    """How a learner's gradient divides over its loss terms: stacked areas that add up to 100 %."""
    named = [(name, arm.curve(f"share/{name}", axis=axis)) for name in terms]
    curves = {_own_name(n, learner): thinned(c) for n, c in named if c is not None}
    if not curves:
        return None
    x = max((c.x for c in curves.values()), key=len)
    heights = np.array([np.clip(np.interp(x, c.x, c.y), 0, None) for c in curves.values()])
    total = heights.sum(axis=0)
    tops = np.cumsum(heights / np.where(total > 0, total, 1), axis=0)
    mean = (heights / np.where(total > 0, total, 1)).mean(axis=1)
    labels = [f"{shorten(name, 70, SMALL)} {units.percent(float(m))}" for name, m in zip(curves, mean, strict=True)]
    figure, ax = _share_axes(x, max(map(width_of, labels)), axis)
    for i, (low, top) in enumerate(zip([np.zeros_like(x), *tops], tops, strict=False)):
        ax.fill_between(x, low, top, color=sentinel(_colour(i)), alpha=0.5, linewidth=0)
        ax.plot(x, top, color=sentinel("paper"), linewidth=1)
    middles = [pixels(ax, 0, float(m))[1] for m in (tops[:, -1] + np.vstack([0 * tops[:1], tops[:-1]])[:, -1]) / 2]
    _end_labels(figure, ax, labels, [Style(_colour(i)) for i in range(len(labels))], middles)
    says = "Share of the gradient's norm, mean over training: " + ", ".join(labels)
    caption = f"How much each weighted term moves {_called(learner)}; the figures are means over training."
    key = f"shares-{_place(arm, learner)}"
    return Chart(
        key,
        f"Share of the gradient{'' if learner == STUDENT else ' of ' + clean(learner)}",
        inline(figure, key, says),
        caption,
    )


def thinned(curve: Curve, most: int = POINTS) -> Curve:
    """A curve of at most ``most`` points: means over equal stretches; the first and last x stay."""
    if len(curve.x) <= most:
        return curve
    each = math.ceil(len(curve.x) / most)
    pieces = np.split(np.arange(len(curve.x)), range(each, len(curve.x), each))
    x = np.array([curve.x[p].mean() for p in pieces])
    x[0], x[-1] = curve.x[0], curve.x[-1]
    return Curve(x, np.array([curve.y[p].mean() for p in pieces]))


def _losses(run: Run, axis: str) -> Chart | None:
    found = []
    for arm in run.arms:
        curve = _loss(arm, axis)
        if curve is not None:
            found.append(Line(arm.label, arm.style, curve))
    note = "Arms minimise different losses: compare the shapes, not the heights." if len(found) > 1 else ""
    return lines("curve-loss", "Training loss", found, "", axis, note)


def _loss(arm: Arm, axis: str) -> Curve | None:
    """The logged loss of the student, else the sum of its weighted terms."""
    logged = next((c for k in ("loss/student", "loss") if (c := arm.curve(k, axis=axis)) is not None), None)
    if logged is not None:
        return logged
    terms = [arm.curve(f"weighted/{n}", axis=axis) for n in learners(arm).get(STUDENT, ())]
    known = [c for c in terms if c is not None]
    same = bool(known) and all(np.array_equal(c.x, known[0].x) for c in known)
    return Curve(known[0].x, np.sum([c.y for c in known], axis=0)) if same else None


def _own_name(term: str, learner: str) -> str:
    return clean(term if learner == STUDENT else term.removeprefix(f"{learner}."))


def _called(learner: str) -> str:
    return "the student" if learner == STUDENT else clean(learner)


def _place(arm: Arm, learner: str) -> int:
    """A number for an id: a learner's name may hold anything."""
    return list(learners(arm)).index(learner)


def _validations(run: Run, axis: str) -> list[Chart | None]:
    """The validation metric the run is judged by, or the nearest to it that was logged."""
    logged = [k for arm in run.arms for k in arm.logged("val") if info(k).group != "cost"]
    skipped = {"step", "epoch", "seconds", "split", "phase"}
    keys = [k for k in dict.fromkeys(logged) if k not in skipped and "/" not in k]
    metric = run.main if run.main and run.main.key in keys else main_metric(keys, run.task)
    if metric is None:
        return []
    curves = [(arm, arm.curve(metric.key, "val", axis)) for arm in run.arms]
    found = [Line(arm.label, arm.style, curve) for arm, curve in curves if curve is not None]
    return [
        lines("curve-validation", f"{metric.label} on validation data", found, metric.unit, axis, _direction(metric))
    ]


def _healths(run: Run, axis: str) -> list[Chart | None]:
    """Each number of a method's health, of all arms that have it."""
    found: list[Chart | None] = []
    for key in dict.fromkeys(k for arm in run.arms for k in arm.logged() if k.startswith(HEALTH)):
        name = clean(key.removeprefix(HEALTH))
        title, caption = TELLS.get(name, (name.replace("_", " ").capitalize(), ""))
        curves = [(arm, arm.curve(key, axis=axis)) for arm in run.arms]
        drawn = [Line(arm.label, arm.style, curve) for arm, curve in curves if curve is not None]
        found.append(lines(f"curve-health-{len(found)}", title, drawn, "", axis, caption))
    return found


def _direction(metric: Metric) -> str:
    return f"{metric.better.capitalize()} is better." if metric.better else ""


def _axis(run: Run) -> str:
    logged = [arm for arm in run.arms if arm.log]
    return "epoch" if logged and all(arm.axis == "epoch" for arm in logged) else "step"


def _late(curve: Curve | None) -> float | None:
    return float(curve.y[-max(1, len(curve.y) // 10) :].mean()) if curve is not None else None


def _colour(i: int) -> str:
    return CATEGORICAL[i % len(CATEGORICAL)]


def _over_training(curves: Sequence[Curve], margin: float, unit: str, axis: str) -> tuple[Figure, Axes]:
    values = np.concatenate([c.y for c in curves])
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / low > LOG_FROM and unit != "%"
    low = max(low, high / DEEPEST) if log else low
    ticks = log_ticks(low, high) if log else [float(v) for v in MaxNLocator(4).tick_values(low, high)]
    texts = [units.tick(t, unit) for t in ticks]
    figure = canvas(232)
    left = max([0.0, *map(width_of, texts)]) + 12
    ax = axes(figure, left=left, right=margin + 14, top=12, bottom=40)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(FixedLocator(ticks))
    else:
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        ax.set_ylim(low - room, high + room)
        ax.yaxis.set_major_locator(FixedLocator([t for t in ticks if low - room <= t <= high + room]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, unit)))
    _time_axis(figure, ax, [float(c.x[0]) for c in curves] + [float(c.x[-1]) for c in curves], axis)
    return figure, ax


def _share_axes(x: np.ndarray, margin: float, axis: str) -> tuple[Figure, Axes]:
    figure = canvas(232)
    ax = axes(figure, left=width_of(units.percent(1.0)) + 12, right=margin + 14, top=12, bottom=40)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: units.tick(v, "%")))
    _time_axis(figure, ax, [float(x[0]), float(x[-1])], axis)
    return figure, ax


def _time_axis(figure: Figure, ax: Axes, ends: Sequence[float], axis: str) -> None:
    low, high = min(ends), max(ends)
    ax.set_xlim(low, high if high > low else low + 1)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=high - low >= 4, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: units.scaled(round(v, 9)) if v >= 1e4 else f"{v:g}"))
    write(figure, ax.get_position().x1 * WIDTH, 4, axis, "muted", ha="right")


def _end_labels(figure: Figure, ax: Axes, labels: Sequence[str], worn: Sequence[Style], ends: Sequence[float]) -> None:
    """Names at the right margin, at the height where their lines end, moved apart where they would touch."""
    height = figure.get_size_inches()[1] * 72
    low, high = ax.get_position().y0 * height + 4, ax.get_position().y1 * height
    shown = [e if math.isfinite(e) else low for e in ends]
    for label, style, y in zip(labels, worn, apart(shown, 15, low, high), strict=True):
        bold = style.colour == "student"
        write(figure, ax.get_position().x1 * WIDTH + 8, y, label, style.colour, va="center_baseline", bold=bold)
