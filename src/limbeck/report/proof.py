"""The page of one claim: what it says, what was expected, what was measured, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.expectation import parse_expectation
from limbeck.report import units
from limbeck.report.charts import Row, dots
from limbeck.report.figures import Chart
from limbeck.report.html import write_page
from limbeck.report.labels import Metric, info, main_metric, ordered
from limbeck.report.page import citation
from limbeck.report.palette import styles
from limbeck.report.results import clean
from limbeck.report.tables import flattened


@dataclass(frozen=True)
class Expected:
    """One expectation as the page shows it."""

    text: str
    left: str
    right: str
    margin: str
    holds: bool


def write_proof(evidence: Mapping[str, Any], path: Path) -> Path:
    """Write the page of one claim.

    Args:
        evidence: what ``limbeck prove`` found (``Verdict.as_dict()``, the shape of ``evidence/<family>/<slug>.json``).
        path: the HTML file to write.
    """
    arms = {str(k): v for k, v in _mapping(evidence.get("arms")).items() if isinstance(v, Mapping)}
    checks = [c for c in evidence.get("checks") or [] if isinstance(c, Mapping)]
    expected = [_expected(c) for c in checks]
    metrics = _named(checks, arms)
    seeds = [clean(s) for s in evidence.get("seeds") or []]
    facts = {
        "kind": "proof of a claim",
        "title": clean(evidence.get("title") or evidence.get("slug") or "A claim"),
        "kicker": [t for t in (_text(evidence, "method"), _text(evidence, "family")) if t],
        "holds": bool(evidence.get("holds")),
        "says": _sentence(_text(evidence, "says") or "nothing is claimed"),
        "remarks": _remarks(evidence, expected, seeds),
        "warnings": _warnings(evidence),
        "expected": expected,
        "plots": _plots(arms, metrics),
        "tables": [_seed_table(arms, m, seeds) for m in metrics],
        "everything": _everything(arms),
        "arms": [clean(name) for name in arms],
        "paper": citation(evidence.get("paper")),
        "machine": flattened(_mapping(evidence.get("machine"))),
        "hashes": flattened(_mapping(evidence.get("hashes"))),
        "footer": _footer(evidence),
    }
    return write_page(Path(path), "proof.html.jinja", **facts)


def _expected(check: Mapping[str, Any]) -> Expected:
    text = clean(check.get("text") or "")
    left, right = units.finite(check.get("left")), units.finite(check.get("right"))
    unit = _unit_of(text)
    margin = units.difference(left, right, unit) if left is not None and right is not None else ""
    return Expected(text, _side(left, unit), _side(right, unit), margin, bool(check.get("holds")))


def _side(value: float | None, unit: str) -> str:
    return "not finite" if value is None else units.quantity(value, unit)


def _unit_of(text: str) -> str:
    """The unit both sides are in: that of their metrics where all share one and none is multiplied or divided."""
    found = {info(key).unit for key in _keys(text)}
    return found.pop() if len(found) == 1 and not set("*/") & set(text) else ""


def _keys(text: str) -> list[str]:
    try:
        return sorted({metric for metric, _ in parse_expectation(text).names})
    except UserError:
        return []


def _named(checks: Sequence[Mapping[str, Any]], arms: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """The metrics that the expectations mention, in that order; else what the arms are judged by."""
    there = {key for arm in arms.values() for key in arm}
    named = [k for c in checks for k in _keys(clean(c.get("text") or "")) if k in there]
    if named:
        return [info(key) for key in dict.fromkeys(named)]
    main = main_metric(sorted(there))
    return [main] if main else []


def _values(arm: Mapping[str, Any], metric: Metric) -> list[float | None]:
    """A metric's value for each seed; a seed whose value is not finite keeps its place."""
    found = _mapping(arm.get(metric.key)).get("values")
    return [units.finite(v) for v in found] if isinstance(found, list) else []


def _plots(arms: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric]) -> list[Chart]:
    worn = styles(arms)
    found = []
    for number, metric in enumerate(metrics):
        known = {name: tuple(v for v in _values(arm, metric) if v is not None) for name, arm in arms.items()}
        rows = [Row(clean(name), worn[name], values) for name, values in known.items() if values]
        better = f"{metric.better.capitalize()} is better. " if metric.better else ""
        drawn = dots(
            f"seeds-{number}", metric.label, rows, metric, f"{better}A mark for each seed, a bar at their mean."
        )
        found += [drawn] if drawn else []
    return found


def _seed_table(arms: Mapping[str, Mapping[str, Any]], metric: Metric, seeds: Sequence[str]) -> dict[str, Any]:
    values = {name: _values(arm, metric) for name, arm in arms.items()}
    width = max([len(seeds), *(len(v) for v in values.values())])
    rows = []
    for name, found in values.items():
        known = [v for v in found if v is not None]
        cells = [units.quantity(v, metric.unit) if v is not None else units.DASH for v in found]
        rows.append(
            (
                clean(name),
                cells + [units.DASH] * (width - len(cells)),
                units.spread(known, metric.unit) if known else units.DASH,
            )
        )
    heads = [seeds[i] if i < len(seeds) else str(i) for i in range(width)]
    return {"label": metric.label, "heads": heads, "rows": rows}


def _everything(arms: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    keys = {key for arm in arms.values() for key in arm}
    rows = []
    for metric in ordered(keys):
        known = [[v for v in _values(arm, metric) if v is not None] for arm in arms.values()]
        if any(known):
            rows.append((metric.label, [units.spread(v, metric.unit) if v else units.DASH for v in known]))
    return rows


def _remarks(evidence: Mapping[str, Any], expected: Sequence[Expected], seeds: Sequence[str]) -> list[str]:
    held = sum(e.holds for e in expected)
    over = f", on the means of {len(seeds)} seeds" if len(seeds) > 1 else ", on one seed" if seeds else ""
    found = [f"{held} of {len(expected)} expectations {'holds' if held == 1 else 'hold'}{over}."] if expected else []
    because = _text(evidence, "because")
    return [*found, f"Why it does not hold: {because}"] if because and not evidence.get("holds") else found


def _warnings(evidence: Mapping[str, Any]) -> list[str]:
    stale = _text(evidence, "state") == "stale"
    return ["This record is stale: the recipe or the method has changed since it was measured."] if stale else []


def _footer(evidence: Mapping[str, Any]) -> str:
    seconds, when = units.finite(evidence.get("seconds")), _text(evidence, "recorded")
    pieces = [f"recorded {when}" if when else "", f"measured in {units.seconds(seconds)}" if seconds else ""]
    return " · ".join(["Written by limbeck from the evidence ledger", *(p for p in pieces if p)]) + "."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _text(evidence: Mapping[str, Any], key: str) -> str:
    value = evidence.get(key)
    return clean(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}
