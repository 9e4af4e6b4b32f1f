"""Classifiers seen closer: are the probabilities right, which classes are mixed up, what changed for which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from limbeck.report import units
from limbeck.report.figures import SMALL, WIDTH, Chart, axes, canvas, chart, inline, pixels, shorten, width_of, write
from limbeck.report.palette import ROLES, sentinel
from limbeck.report.results import Arm, Floats, Run, points

WITH_NAMES = 20
WITH_CELLS = 40
"""Above this many classes a matrix cannot be read; the pairs mixed up most are listed instead."""
MOST_ARMS = 4
"""With more arms the reliability diagram shows only teacher, student and the first control."""
FEW = 5
"""Bins of fewer samples say little: their accuracy jumps by a fifth and more with one of them."""
CHANGES = 12
"""Classes whose change is drawn, those that changed most."""


def class_charts(run: Run) -> list[Chart]:
    """Reliability, confusion and per-class change; what was not measured is left out."""
    found = [reliability(run), confusion(run), class_change(run)]
    return [c for c in found if c is not None]


@chart
def reliability(run: Run) -> Chart | None:
    """Accuracy against confidence of every arm, above the student's histogram of confidence."""
    curves = [(arm, c) for arm in run.arms if (c := _bins(arm)) is not None]
    if len(curves) > MOST_ARMS:
        curves = [(arm, c) for arm, c in curves if arm.style in ROLES.values()]
    if not curves:
        return None
    drawn = [arm for arm, _ in curves]
    figure = canvas(330)
    ax = axes(figure, left=48, right=22, top=36, bottom=92, grid="both")
    ax.plot([0, 1], [0, 1], color=sentinel("muted"), linewidth=1, dashes=(4, 3))
    for arm, bins in reversed(curves):
        _reliability_line(ax, arm, *bins)
    _unit_square(ax)
    _key(figure, drawn, 318)
    _histogram(figure, *next((c for c in curves if c[0] is run.student), curves[0]))
    write(figure, 56, 276, "Accuracy", "muted")
    errors = [(arm, arm.value("ece")) for arm in drawn]
    says = "Accuracy against confidence. Calibration error: " + ", ".join(
        f"{arm.label} {units.percent(e)}" for arm, e in errors if e is not None
    )
    caption = (
        "On the dashed line a model is right as often as it says. Marks grow with the samples behind them; "
        f"those of fewer than {FEW} samples are not joined."
    )
    return Chart("reliability", "Reliability", inline(figure, "reliability", says), caption)


@chart
def confusion(run: Run) -> Chart | None:
    """The student's confusion matrix: mistakes stand out, the diagonal stays quiet."""
    arm = run.student
    matrix = counts(arm) if arm else None
    if arm is None or matrix is None or not 2 <= len(matrix) <= WITH_CELLS:
        return None
    classes = len(matrix)
    names = _names(run, classes) if classes <= WITH_NAMES else []
    left = min(92.0, max([0.0, *map(width_of, names)])) + 26 if names else 22.0
    cell = (WIDTH - left - 2) / classes
    upright = bool(names) and max(map(width_of, names)) > cell - 3
    below = min(92.0, max(map(width_of, names))) + 12 if upright else 22.0 if names else 6.0
    figure = canvas(cell * classes + below + 24)
    ax = axes(figure, left=left, right=2, top=24, bottom=below, grid="")
    _cells(ax, matrix, cell)
    _class_names(figure, ax, names, cell, upright)
    _corner_labels(figure, left)
    wrong = int(matrix.sum() - np.trace(matrix))
    says = f"Confusion matrix of {arm.label}: {wrong} of {int(matrix.sum())} wrong. " + "; ".join(
        f"{true} taken for {taken} {times} times" for true, taken, times in mixed_up(run, 3)
    )
    caption = f"{wrong:,} of {int(matrix.sum()):,} test samples are wrong.".replace(",", units.GAP)
    return Chart("confusion", "What the student mixes up", inline(figure, "confusion", says), caption)


@chart
def class_change(run: Run) -> Chart | None:
    """Each class's accuracy, student minus teacher, in percentage points."""
    change = _changes(run)
    if change is None or not len(change):
        return None
    order = sorted(change, key=lambda i: (-abs(change[i]), i))[:CHANGES]
    order = sorted(order, key=lambda i: (-change[i], i))
    names = _names(run, max(change) + 1)
    labels = [shorten(names[i], 92) for i in order]
    texts = [units.difference(change[i], 0.0, "%").replace(" points", "") for i in order]
    figure = canvas(22 * len(order) + 40)
    left = max(map(width_of, labels)) + 12
    ax = axes(figure, left=left, right=10, top=8, bottom=32, grid="x")
    _change_bars(figure, ax, [change[i] for i in order], texts)
    for row, label in enumerate(labels):
        write(figure, 0, pixels(ax, 0, row)[1], label, "ink", va="center_baseline")
    says = "Student minus teacher, accuracy per class in points: " + ", ".join(
        f"{names[i]} {t}" for i, t in zip(order, texts, strict=True)
    )
    more = f" The {CHANGES} of {len(change)} classes that changed most." if len(change) > CHANGES else ""
    caption = f"Accuracy within each class, student minus teacher, in percentage points.{more}"
    return Chart("class-change", "Class by class against the teacher", inline(figure, "class-change", says), caption)


def counts(arm: Arm) -> Floats | None:
    """An arm's confusion matrix [K, K] (rows: truth), or None."""
    matrix = points(arm.details.get("confusion"))
    if matrix is None or matrix.shape[0] != matrix.shape[1] or (matrix < 0).any() or not matrix.sum():
        return None
    return matrix


def sample_count(arm: Arm) -> int | None:
    """How many test samples an arm was judged on, if it is known."""
    said = units.finite(arm.details.get("test_samples"))
    if said and said > 0:
        return int(said)
    matrix = counts(arm)
    return int(matrix.sum()) if matrix is not None else None


def mixed_up(run: Run, most: int = 8) -> list[tuple[str, str, int]]:
    """The pairs that the student mixes up most: (true class, what it was taken for, how often)."""
    matrix = counts(run.student) if run.student else None
    if matrix is None:
        return []
    wrong = matrix - np.diag(np.diag(matrix))
    names = _names(run, len(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(matrix)) for i in order]
    return [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0]


def _bins(arm: Arm) -> tuple[Floats, Floats, Floats] | None:
    """Mean confidence, accuracy and count of the bins of an arm's reliability curve."""
    given = arm.details.get("reliability")
    if not isinstance(given, Mapping):
        return None
    columns: list[Any] = [given.get("bins", given.get("confidence")), given.get("accuracy"), given.get("count")]
    if columns[2] is None and isinstance(columns[0], Sequence):
        columns[2] = [1] * len(columns[0])
    if not all(isinstance(c, list) for c in columns) or len({len(c) for c in columns}) != 1:
        return None
    rows = points([list(row) for row in zip(*columns, strict=True)], 3)
    rows = rows[rows[:, 2] > 0] if rows is not None else None
    return (rows[:, 0], rows[:, 1], rows[:, 2]) if rows is not None and len(rows) else None


def _reliability_line(ax: Axes, arm: Arm, confidence: Floats, accuracy: Floats, count: Floats) -> None:
    """A mark for each bin; a line through those whose accuracy is more than chance."""
    colour = sentinel(arm.style.colour)
    solid = count >= FEW if (count >= FEW).sum() > 1 else count > 0
    joined = {"color": colour, "linewidth": 1.6, "linestyle": arm.style.line, "solid_capstyle": "round"}
    ax.plot(confidence[solid], accuracy[solid], **joined)  # type: ignore[arg-type]
    size = 12 + 60 * np.sqrt(count / count.sum())
    marks = {"marker": arm.style.marker, "color": colour, "linewidths": 0, "clip_on": False, "zorder": 3}
    ax.scatter(confidence, accuracy, s=size, **marks)  # type: ignore[arg-type]


def _unit_square(ax: Axes) -> None:
    for limits, axis in ((ax.set_xlim, ax.xaxis), (ax.set_ylim, ax.yaxis)):
        limits(0, 1)
        axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f}" + (f"{units.GAP}%" if v == 1 else "")))


def _key(figure: Figure, arms: Sequence[Arm], y: float) -> None:
    """Marker, name and calibration error of each arm, in one row."""
    room = WIDTH - 26 * len(arms) + 8
    texts = [" ".join(filter(None, (arm.label, _error(arm)))) for arm in arms]
    if sum(map(width_of, texts)) > room:
        texts = [shorten(arm.label, room / len(arms)) for arm in arms]
    x = 6.0
    layer = figure.add_axes((0, 0, 1, 1), facecolor="none")
    layer.axis("off")
    layer.set(xlim=(0, WIDTH), ylim=(0, figure.get_size_inches()[1] * 72))
    for arm, text in zip(arms, texts, strict=True):
        layer.plot([x], [y], arm.style.marker, color=sentinel(arm.style.colour), markersize=7)
        write(figure, x + 10, y, text, arm.style.colour, va="center_baseline")
        x += width_of(text) + 26


def _error(arm: Arm) -> str:
    error = arm.value("ece")
    return units.percent(error) if error is not None else ""


def _histogram(figure: Figure, arm: Arm, bins: tuple[Floats, Floats, Floats]) -> None:
    confidence, _, count = bins
    ax = axes(figure, left=48, right=22, top=262, bottom=22, grid="")
    ax.bar(confidence, count / count.max(), width=0.045, color=sentinel(arm.style.colour), alpha=0.6, linewidth=0)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axhline(0, color=sentinel("rule"), linewidth=1)
    ax.xaxis.set_major_locator(NullLocator())
    ax.yaxis.set_major_locator(NullLocator())
    write(figure, WIDTH - 22, 4, "Confidence", "muted", ha="right")
    write(figure, 48, 4, f"How sure: {shorten(arm.label, 140)}", "muted")


def _cells(ax: Axes, matrix: Floats, cell: float) -> None:
    classes = len(matrix)
    ax.set(xlim=(0, classes), ylim=(classes, 0))
    ax.xaxis.set_major_locator(NullLocator())
    ax.yaxis.set_major_locator(NullLocator())
    wrong = matrix - np.diag(np.diag(matrix))
    most = max(1.0, float(wrong.max()))
    right = np.diag(matrix) / np.maximum(1, matrix.sum(axis=1))
    size = min(SMALL, cell * 0.42)
    for i, j in zip(*np.nonzero(matrix), strict=True):
        alpha = 0.06 + 0.16 * right[i] if i == j else 0.12 + 0.43 * wrong[i, j] / most
        colour = sentinel("muted" if i == j else "student")
        ax.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, facecolor=colour, alpha=float(alpha), linewidth=0))
        text = f"{int(matrix[i, j])}"
        if classes <= WITH_NAMES and width_of(text, size) < cell - 1:
            write(ax, j + 0.5, i + 0.5, text, "ink", size=size, ha="center", va="center_baseline")
    ax.plot(
        [0, classes, classes, 0, 0], [0, 0, classes, classes, 0], color=sentinel("rule"), linewidth=1, clip_on=False
    )


def _class_names(figure: Figure, ax: Axes, names: Sequence[str], cell: float, upright: bool) -> None:
    size = min(SMALL, max(8.0, cell * 0.7))
    for i, name in enumerate(names):
        text = shorten(name, 92)
        x, y = pixels(ax, i + 0.5, i + 0.5)
        left, bottom = pixels(ax, 0, len(names))
        write(figure, left - 6, y, text, "ink", size=size, ha="right", va="center_baseline")
        turned: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center_baseline"}
        level = {"ha": "center", "va": "top"}
        write(figure, x, bottom - 6, text, "ink", size=size, **(turned if upright else level))


def _corner_labels(figure: Figure, left: float) -> None:
    height = figure.get_size_inches()[1] * 72
    write(figure, 0, height - 14, "true class ↓", "muted")
    write(figure, WIDTH - 2, height - 14, "taken for →", "muted", ha="right")


def _changes(run: Run) -> dict[int, float] | None:
    """Student minus teacher for each class that both were judged on."""
    if run.student is None:
        return None
    said = run.student.details.get("per_class_change")
    if isinstance(said, list):
        return {i: v for i, x in enumerate(said) if (v := units.finite(x)) is not None}
    matrices = [counts(arm) if arm else None for arm in (run.student, run.teacher)]
    student, teacher = matrices
    if student is None or teacher is None or student.shape != teacher.shape:
        return None
    seen = np.flatnonzero((student.sum(1) > 0) & (teacher.sum(1) > 0))
    return {int(i): float(student[i, i] / student[i].sum() - teacher[i, i] / teacher[i].sum()) for i in seen}


def _change_bars(figure: Figure, ax: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    widest = max(map(width_of, texts)) + 10
    most = max(*map(abs, values), 0.005) if len(values) > 1 else max(abs(values[0]), 0.005)
    inner = ax.get_position().width * WIDTH
    low, high = min(0.0, *values), max(0.0, *values)
    per_pixel = max(high - low, most) / max(40.0, inner - 2 * widest)
    ax.set_xlim(low - widest * per_pixel, high + widest * per_pixel)
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.yaxis.set_major_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator([0.0]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: "as the teacher"))
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        colour = "good" if value > 0 else "bad" if value < 0 else "muted"
        ax.barh(row, value, height=0.62, color=sentinel(colour), alpha=0.75, linewidth=0)
        x, y = pixels(ax, value, row)
        side = "left" if value >= 0 else "right"
        write(figure, x + (5 if value >= 0 else -5), y, text, colour, va="center_baseline", ha=side)
    ax.axvline(0, color=sentinel("muted"), linewidth=1)


def _names(run: Run, classes: int) -> list[str]:
    known = run.class_names
    return [known[i] if i < len(known) and known[i] else str(i) for i in range(classes)]
