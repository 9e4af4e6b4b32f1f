"""The page of a comparison: several arms over several seeds, who leads, by how much, at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.report import units
from limbeck.report.charts import Row, Spot, dots, tradeoff
from limbeck.report.figures import Chart
from limbeck.report.html import write_page
from limbeck.report.labels import Metric, info, main_metric, ordered, short
from limbeck.report.palette import ROLES, Style, styles
from limbeck.report.results import clean
from limbeck.report.tables import Cell

COSTS = ("latency_ms", "parameters", "bytes", "nfe", "images", "image_bytes")
STRIPS = 5
"""Metrics beside the main one that get a plot of every seed."""


@dataclass(frozen=True)
class Entry:
    """One arm: its values by metric and seed."""

    name: str
    style: Style
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def of(self, metric: Metric) -> tuple[float, ...]:
        """The finite values of a metric, by ascending seed."""
        found = self.values.get(metric.key, {})
        return tuple(found[seed] for seed in sorted(found))

    def mean(self, metric: Metric) -> float | None:
        """The mean over seeds, or None."""
        return units.mean(self.of(metric)) if self.of(metric) else None


def write_comparison(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str = "", task: str = "") -> Path:
    """Write the page that compares several arms over several seeds.

    Args:
        rows: one for each arm and seed: ``name``, ``seed``, ``metrics`` (name to value) and ``labels``. A label whose
            key is a metric is ``(label, unit)`` and replaces the metric's own; any other is a word about the arm.
        path: the HTML file to write.
        title: of the page; left out, it counts arms and seeds.
        task: classification, language or generation; says which metric decides where several could.
    """
    found = entries(rows)
    overrides = {k: v for row in rows for k, v in _mapping(row.get("labels")).items()}
    keys = {key for entry in found for key in entry.values}
    metrics = [info(m.key, overrides) for m in ordered(keys)]
    main = main_metric(keys, task)
    main = info(main.key, overrides) if main else None
    ranked = _ranked(found, main)
    facts = {
        "kind": "comparison",
        "title": title or _title(rows, found),
        "headline": headline(ranked, main),
        "remarks": _remarks(ranked, main),
        "standing": _strips(ranked, main, metrics),
        "tradeoffs": _tradeoffs(ranked, main, overrides),
        **_table(ranked, main, metrics),
        "seeds": _seed_rows(rows, metrics),
    }
    return write_page(Path(path), "compare.html.jinja", **facts)


def entries(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The rows by arm, in the order in which the arms first occur."""
    names = list(dict.fromkeys(str(row.get("name", "")) for row in rows))
    baseline = {} if "alone" in names else {"random": ROLES["alone"]}
    worn = styles(names, {**ROLES, **baseline})
    return [_entry(name, worn[name], [r for r in rows if str(r.get("name", "")) == name]) for name in names]


def headline(ranked: Sequence[Entry], main: Metric | None) -> str:
    """Who leads, by how much, and whether the seeds can tell."""
    contest = [e for e in ranked if main and e.name != "teacher" and e.mean(main) is not None]
    if main is None or not contest:
        return "Nothing was measured that could be compared."
    first, shown = contest[0], units.spread(contest[0].of(main), main.unit)
    if len(contest) == 1 or main.better is None:
        return f"{_quoted(first)} has {_article(main)}{main.name} of {shown}{_ceiling(ranked, main)}."
    second = contest[1]
    lead, certain = paired(first, second, main)
    names = _quoted(first), _quoted(second)
    if not certain and len(first.of(main)) > 1:
        other = units.spread(second.of(main), main.unit)
        return f"{names[0]} and {names[1]} are level in {main.name} ({shown} and {other}){_ceiling(ranked, main)}."
    by = units.difference(abs(lead), 0.0, main.unit).lstrip("+")
    leads = f"{names[0]} leads with {_article(main)}{main.name} of {shown}"
    return f"{leads}, {by} ahead of {names[1]}{_ceiling(ranked, main)}."


def paired(first: Entry, second: Entry, metric: Metric) -> tuple[float, bool]:
    """How much better ``first`` is on average, and whether that is more than twice its standard error.

    Seeds that both have are compared pair by pair; without two of them nothing is certain.
    """
    a, b = first.values.get(metric.key, {}), second.values.get(metric.key, {})
    gains = [metric.gain(a[seed], b[seed]) for seed in sorted(set(a) & set(b))]
    if not gains:
        return metric.gain(first.mean(metric) or 0.0, second.mean(metric) or 0.0), False
    width = units.deviation(gains)
    return units.mean(gains), width is not None and abs(units.mean(gains)) > 2 * width / math.sqrt(len(gains))


def _entry(name: str, style: Style, rows: Sequence[Mapping[str, Any]]) -> Entry:
    values: dict[str, dict[int, float]] = {}
    tags: dict[str, str] = {}
    for number, row in enumerate(rows):
        seed = row.get("seed")
        for key, value in _mapping(row.get("metrics")).items():
            exact = units.finite(value)
            if exact is not None:
                values.setdefault(key, {})[seed if isinstance(seed, int) else number] = exact
        tags |= {k: clean(v) for k, v in _mapping(row.get("labels")).items() if isinstance(v, str)}
    return Entry(name, style, values, tags)


def _ranked(found: Sequence[Entry], main: Metric | None) -> list[Entry]:
    """Best first; arms without a value last; in the given order where no direction is known."""
    if main is None or main.better is None:
        return list(found)

    def key(entry: Entry) -> tuple[bool, float]:
        mean = entry.mean(main)
        return mean is None, 0.0 if mean is None else -main.gain(mean, 0.0)

    return sorted(found, key=key)


def _title(rows: Sequence[Mapping[str, Any]], found: Sequence[Entry]) -> str:
    seeds = len({row.get("seed") for row in rows})
    return f"{len(found)} {'arm' if len(found) == 1 else 'arms'} over {seeds} {'seed' if seeds == 1 else 'seeds'}"


def _quoted(entry: Entry) -> str:
    """The arm's name for a sentence; in quotes where it is more than a word."""
    name = clean(entry.name)
    return name if name.replace("-", "").replace("_", "").isalnum() else f"“{name}”"


def _ceiling(ranked: Sequence[Entry], main: Metric) -> str:
    teacher = next((e.mean(main) for e in ranked if e.name == "teacher"), None)
    return f"; the teacher reaches {units.quantity(teacher, main.unit)}" if teacher is not None else ""


def _remarks(ranked: Sequence[Entry], main: Metric | None) -> list[str]:
    contest = [e for e in ranked if main and e.name != "teacher" and e.mean(main) is not None]
    if main is None or main.better is None or len(contest) < 2:
        return []
    first, second = contest[:2]
    a, b = first.values[main.key], second.values[main.key]
    seeds = sorted(set(a) & set(b))
    if len(seeds) < 2:
        return ["One seed for each: how much of the difference is chance cannot be told."]
    wins = sum(main.gain(a[s], b[s]) > 0 for s in seeds)
    lead, certain = paired(first, second, main)
    sure = "more than twice its standard error" if certain else "within twice its standard error"
    by = units.difference(lead, 0.0, main.unit)
    names = _quoted(first), _quoted(second)
    return [
        f"{names[0]} is better than {names[1]} in {wins} of {len(seeds)} seeds; the mean difference, {by}, is {sure}."
    ]


def _strips(ranked: Sequence[Entry], main: Metric | None, metrics: Sequence[Metric]) -> list[Chart]:
    """Every seed as a dot: the main metric, then others that are not costs."""
    others = [
        m for m in metrics if m.group != "cost" and (main is None or m.key != main.key) and not m.key.endswith("_std")
    ]
    found = []
    for number, metric in enumerate([*([main] if main else []), *others[:STRIPS]]):
        rows = [Row(clean(e.name), e.style, e.of(metric)) for e in ranked if e.of(metric)]
        if len(rows) > 1 and len({v for row in rows for v in row.values}) > 1:
            many = any(len(row.values) > 1 for row in rows)
            better = f"{metric.better.capitalize()} is better." if metric.better else ""
            caption = f"{better} {'A mark for each seed, a bar at their mean.' if many else ''}".strip()
            found.append(dots(f"strip-{number}", metric.label, rows, metric, caption))
    return [c for c in found if c is not None]


def _tradeoffs(ranked: Sequence[Entry], main: Metric | None, overrides: Mapping[str, object]) -> list[Chart]:
    if main is None:
        return []
    found: list[Chart | None] = []
    for cost in (info(key, overrides) for key in COSTS):
        spots = [_spot(e, cost, main) for e in ranked]
        known = [s for s in spots if s is not None and s.x > 0]
        if len({s.x for s in known}) > 1 and not (
            cost.key == "bytes" and any(c and "parameters" in c.key for c in found)
        ):
            title = f"{main.label} against {cost.name}"
            caption = "Means over seeds. Dashed: the best that is reached at each cost."
            found.append(tradeoff(f"against-{cost.key}", title, known, cost, main, frontier=True, caption=caption))
    return [c for c in found if c is not None]


def _spot(entry: Entry, cost: Metric, quality: Metric) -> Spot | None:
    x, y = entry.mean(cost), entry.mean(quality)
    return Spot(clean(entry.name), entry.style, x, y) if x is not None and y is not None else None


def _table(ranked: Sequence[Entry], main: Metric | None, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Mean and spread of every metric, an arm a row, the main metric first."""
    columns = sorted(metrics, key=lambda m: main is None or m.key != main.key)
    tags = list(dict.fromkeys(tag for e in ranked for tag in e.tags))
    tags = [tag for tag in tags if len({e.tags.get(tag) for e in ranked}) > 1]
    best = {m.key: _best(ranked, m) for m in columns}
    rows = [
        {
            "name": clean(e.name),
            "colour": e.style.colour,
            "tags": [e.tags.get(tag, "") for tag in tags],
            "seeds": max([len(v) for v in e.values.values()], default=0),
            "cells": [_cell(e, m, best[m.key]) for m in columns],
        }
        for e in ranked
    ]
    heads = [(short(m), {"higher": "↑", "lower": "↓"}.get(m.better or "", "")) for m in columns]
    return {"heads": heads, "tags": [clean(t) for t in tags], "rows": rows}


def _best(ranked: Sequence[Entry], metric: Metric) -> float | None:
    means = [mean for e in ranked if (mean := e.mean(metric)) is not None]
    return max(means, key=lambda v: metric.gain(v, 0.0)) if metric.better and len(set(means)) > 1 else None


def _cell(entry: Entry, metric: Metric, best: float | None) -> Cell:
    values = entry.of(metric)
    return Cell(units.spread(values, metric.unit), entry.mean(metric) == best) if values else Cell(units.DASH)


def _seed_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, Any]:
    cells = [
        (clean(row.get("name", "")), clean(row.get("seed", "")),
         [units.quantity(_mapping(row.get("metrics")).get(m.key), m.unit) for m in metrics])
        for row in rows
    ]  # fmt: skip
    return {"heads": [short(m) for m in metrics], "rows": cells}


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def _article(metric: Metric) -> str:
    return "an " if metric.name[:1].lower() in "aeio" else "a "
