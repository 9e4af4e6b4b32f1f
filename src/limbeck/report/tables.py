"""The rows of a run's page: cards, what was kept, what it cost, every number, the plan, where it comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.report import units
from limbeck.report.labels import GROUPS, Metric, info, ordered, short
from limbeck.report.results import Arm, Run, clean

ON_CARDS = ("nfe", "images", "parameters", "bytes", "latency_ms")


@dataclass(frozen=True)
class Fact:
    """A named value on a card, and how it differs from the teacher's (``tone``: good or empty)."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Card:
    """One arm in short."""

    label: str
    colour: str
    describe: str
    main: Fact | None
    facts: tuple[Fact, ...]
    delivered: bool


@dataclass(frozen=True)
class Mark:
    """An arm's place on a strip, in percent from the left."""

    label: str
    colour: str
    place: float
    text: str


@dataclass(frozen=True)
class Strip:
    """A metric with all arms on one line, the better to the right."""

    label: str
    note: str
    tone: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """A cost of the student as a share of the teacher's."""

    label: str
    note: str
    share: float
    student: str
    teacher: str


@dataclass(frozen=True)
class Cell:
    """A table cell; ``best`` marks the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Block:
    """The rows of one group in the table of all metrics."""

    title: str
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]


def cards(run: Run) -> list[Card]:
    """A card for each arm: the metric the run is judged by, then size and speed."""
    return [_card(run, arm) for arm in run.arms if arm.metrics]


def kept(run: Run) -> list[Strip]:
    """Every metric of quality, fidelity and calibration that at least two arms have."""
    keys = dict.fromkeys(k for arm in run.arms for k in arm.metrics)
    metrics = [m for m in ordered(keys) if m.group in ("quality", "fidelity", "calibration") and m.better]
    metrics = [m for m in metrics if not m.key.endswith("_std")]
    return [strip for m in metrics if (strip := _strip(run, m)) is not None]


def costs(run: Run) -> list[Bar]:
    """Every cost that teacher and student both have, where they differ."""
    student, teacher = run.student, run.teacher
    if student is None or teacher is None:
        return []
    found = []
    for metric in ordered(set(student.metrics) & set(teacher.metrics)):
        own, other = student.value(metric.key), teacher.value(metric.key)
        if metric.group == "cost" and metric.better == "lower" and own and other and own > 0 and other > 0:
            found.append(_bar(metric, own, other))
    return found


def everything(run: Run) -> list[Block]:
    """All metrics of all arms, by group."""
    keys = {k for arm in run.arms for k in arm.metrics}
    blocks = []
    for group, title in GROUPS.items():
        rows = tuple(_row(run, m) for m in ordered(keys) if m.group == group)
        if rows:
            blocks.append(Block(title, rows))
    trained = _row_of_times(run)
    return [*blocks, Block("Training", (trained,))] if trained else blocks


def plan(run: Run) -> list[tuple[str, str, str]]:
    """Every setting, its value and where it came from."""
    given = run.data.get("plan")
    rows = [row for row in given if isinstance(row, list) and row] if isinstance(given, list) else []
    padded = [(*row, "", "")[:3] for row in rows]
    return [(clean(key), _setting(value), clean(origin or "")) for key, value, origin in padded]


def _setting(value: object) -> str:
    """A value as a recipe spells it; a dash for none."""
    if value is None or value == "":
        return units.DASH
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def flattened(values: Mapping[str, Any], most: int = 80) -> list[tuple[str, str]]:
    """A nested map as (dotted key, text) rows; long lists are counted."""
    rows: list[tuple[str, str]] = []
    stack: list[tuple[str, Any]] = [("", dict(values))]
    while stack and len(rows) < most:
        key, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(f"{key}.{k}" if key else str(k), v) for k, v in reversed(list(value.items()))]
        elif isinstance(value, list):
            flat = all(not isinstance(v, list | Mapping) for v in value) and len(value) <= 12
            rows.append((clean(key), clean(", ".join(map(str, value))) if flat else f"{len(value)} items"))
        elif value not in (None, ""):
            rows.append((clean(key), clean(value)))
    return rows


def _card(run: Run, arm: Arm) -> Card:
    main = run.main
    fact = _fact(run, arm, main) if main and main.key in arm.metrics else None
    there = [k for k in ON_CARDS if k in arm.metrics and (k != "bytes" or arm.value("parameters") is None)]
    facts = [_fact(run, arm, info(k)) for k in there]
    if "parameters" in arm.metrics and "bytes" in arm.metrics:
        size = _fact(run, arm, info("bytes"))
        facts.insert(1 + there.index("parameters"), size)
    return Card(arm.label, arm.style.colour, arm.describe, fact, tuple(facts), arm is run.student)


def _fact(run: Run, arm: Arm, metric: Metric) -> Fact:
    text = units.quantity(arm.metrics.get(metric.key), metric.unit)
    value = arm.value(metric.key)
    other = run.teacher.value(metric.key) if run.teacher and arm is not run.teacher else None
    if value is None or other is None:
        return Fact(short(metric), text)
    note, tone = _against(metric, value, other)
    return Fact(short(metric), text, note, tone)


def _against(metric: Metric, value: float, other: float) -> tuple[str, str]:
    """How a value differs from the teacher's, and whether that is good."""
    if metric.group == "cost" and (value <= 0 or other <= 0):
        return "", ""
    if metric.group == "cost":
        ratio = other / value if metric.better == "lower" else value / other
        if max(ratio, 1 / ratio) < 1.05:
            return "the same", ""
        words = ("less", "more") if metric.better == "lower" else ("more", "less")
        return f"{units.times(max(ratio, 1 / ratio))} {words[ratio < 1]}", "good" if ratio > 1 else ""
    if value == other:
        return "as the teacher", ""
    return units.difference(value, other, metric.unit), "good" if metric.better and metric.gain(
        value, other
    ) > 0 else ""


def _strip(run: Run, metric: Metric) -> Strip | None:
    found = [(arm, v) for arm in run.arms if (v := arm.value(metric.key)) is not None]
    if len(found) < 2:
        return None
    values = [v for _, v in found]
    low, high = min(values), max(values)
    reach = high - low or 1.0

    def place(value: float) -> float:
        share = (value - low) / reach if high > low else 0.5
        return round(4 + 92 * (1 - share if metric.better == "lower" else share), 1)

    marks = tuple(Mark(a.label, a.style.colour, place(v), units.quantity(v, metric.unit)) for a, v in found)
    own, other = (arm.value(metric.key) if arm else None for arm in (run.student, run.teacher))
    note, tone = _against(metric, own, other) if own is not None and other is not None else ("", "")
    return Strip(metric.label, note, tone, marks)


def _bar(metric: Metric, own: float, other: float) -> Bar:
    ratio = other / own
    note = "as the teacher" if max(ratio, 1 / ratio) < 1.05 else ""
    note = note or f"{units.times(max(ratio, 1 / ratio))} {'less' if ratio > 1 else 'more'}"
    share = 100 * min(1.0, own / other)
    return Bar(
        short(metric),
        note,
        max(0.5, round(share, 1)),
        units.quantity(own, metric.unit),
        units.quantity(other, metric.unit),
    )


def _row(run: Run, metric: Metric) -> tuple[str, str, tuple[Cell, ...]]:
    values = [arm.value(metric.key) for arm in run.arms]
    known = [v for v in values if v is not None]
    best = max(known, key=lambda v: metric.gain(v, 0.0)) if metric.better and len(known) > 1 else math.nan
    alike = len(set(known)) < 2
    cells = tuple(
        Cell(units.quantity(arm.metrics.get(metric.key), metric.unit), v == best and not alike)
        for arm, v in zip(run.arms, values, strict=True)
    )
    return metric.label, {"higher": "↑", "lower": "↓"}.get(metric.better or "", ""), cells


def _row_of_times(run: Run) -> tuple[str, str, tuple[Cell, ...]] | None:
    times: Sequence[float | None] = [arm.train_seconds for arm in run.arms]
    if not any(times):
        return None
    return "Training time", "", tuple(Cell(units.seconds(t) if t else units.DASH) for t in times)
