"""The page of one run: ``report.html`` from ``results.json``, the logs, the recipe and the manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.report import classes, samples, tables, training, units, verdict
from limbeck.report.charts import Row, Spot, dots, tradeoff
from limbeck.report.figures import Chart
from limbeck.report.html import write_page
from limbeck.report.labels import info
from limbeck.report.results import Run, clean, load

DEFAULT = "default"
"""What the plan calls a setting that the recipe leaves alone."""
COSTS = ("nfe", "images", "parameters", "latency_ms")
SECTIONS = {
    "balance": "Kept and cost",
    "quality": "Quality against cost",
    "samples": "Samples",
    "classes": "Seen closer",
    "training": "Training",
    "numbers": "Every number",
    "notes": "Notes",
    "plan": "Plan",
    "origin": "Origin",
}


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    What the run did not leave (a teacher, curves, a recipe) is left out of the page.

    Raises:
        UserError: there is no readable ``results.json``.
    """
    run = load(Path(run_dir))
    facts = _facts(run)
    facts["sections"] = [(key, name) for key, name in SECTIONS.items() if _present(key, facts)]
    return write_page(Path(run_dir) / "report.html", "run.html.jinja", **facts)


def citation(paper: object) -> dict[str, str]:
    """A paper's title, year and arXiv number as texts, with a link where the number is one."""
    if not isinstance(paper, Mapping):
        return {}
    texts = {k: clean(paper[k]) if paper.get(k) else "" for k in ("title", "year", "arxiv")}
    known = re.fullmatch(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})(v\d+)?", texts["arxiv"])
    return {**texts, "link": f"https://arxiv.org/abs/{texts['arxiv']}" if known else ""} if any(texts.values()) else {}


def _facts(run: Run) -> dict[str, Any]:
    quality = _against_costs(run)
    settings = tables.plan(run)
    return {
        "title": run.title,
        "kind": "run report",
        "kicker": [s for s in dict.fromkeys((run.items("method"), run.items("family"), run.task)) if s],
        "headline": verdict.headline(run),
        "remarks": verdict.remarks(run),
        "warnings": run.lines("warnings"),
        "cards": tables.cards(run),
        "kept": tables.kept(run),
        "costs": tables.costs(run),
        "standing": _standing(run),
        "worn": [(arm.label, arm.style.colour) for arm in run.arms],
        "quality": quality,
        "quality_says": _quality_says(run, quality),
        **_samples(run),
        "classes": [*classes.class_charts(run), *training.position_charts(run)],
        "mixed_up": classes.mixed_up(run),
        "training": training.training_charts(run),
        "terms": _terms(run),
        "arms": [arm.label for arm in run.arms],
        "blocks": tables.everything(run),
        "notes": run.lines("notes"),
        "plan": [row for row in settings if row[2] != DEFAULT],
        "defaults": [row[:2] for row in settings if row[2] == DEFAULT],
        "recipe": run.recipe,
        "plan_says": _plan_says(run),
        "paper": citation(run.data.get("paper")),
        "machine": tables.flattened(run.mapping("machine")),
        "provenance": tables.flattened(
            {k: v for k, v in run.manifest.items() if k != "machine" or not run.mapping("machine")}
        ),
        "footer": _footer(run),
    }


def _present(section: str, facts: Mapping[str, Any]) -> bool:
    needs = {
        "balance": ("kept", "costs", "standing"),
        "samples": ("samples", "galleries", "passages"),
        "classes": ("classes", "mixed_up"),
        "training": ("training", "terms"),
        "numbers": ("blocks",),
        "plan": ("plan", "defaults", "recipe"),
        "origin": ("machine", "provenance", "paper"),
    }
    return any(facts[key] for key in needs.get(section, (section,)))


def _standing(run: Run) -> list[Chart]:
    """The arms on one axis, in the metric that the run is judged by."""
    metric = run.main
    if metric is None:
        return []
    known = [(arm, v) for arm in run.arms if (v := arm.value(metric.key)) is not None]
    rows = [Row(arm.label, arm.style, (v,), verdict.interval(arm, metric)) for arm, v in known]
    found = dots("standing", metric.label, rows, metric, _standing_caption(rows)) if len(rows) > 1 else None
    return [found] if found else []


def _against_costs(run: Run) -> list[Chart]:
    metric = run.main
    if metric is None:
        return []
    known = [(arm, v) for arm in run.arms if (v := arm.value(metric.key)) is not None]
    found = []
    for cost in (info(key) for key in COSTS):
        spots = [Spot(arm.label, arm.style, x, y) for arm, y in known if (x := arm.value(cost.key)) and x > 0]
        if len({s.x for s in spots}) > 1:
            title = f"{metric.label} against {cost.name}"
            found.append(tradeoff(f"against-{cost.key}", title, spots, cost, metric))
    return [c for c in found if c is not None]


def _standing_caption(rows: list[Row]) -> str:
    lines = f"Lines: 95{units.GAP}% intervals from the number of test samples." if any(r.interval for r in rows) else ""
    dashed = f"Dashed: {rows[0].label}." if rows and rows[0].style.colour == "teacher" and len(rows) > 1 else ""
    return " ".join(filter(None, (dashed, lines)))


def _quality_says(run: Run, charts: list[Chart]) -> str:
    better = run.main.better if run.main else None
    text = f"{run.main.label}: {better} is better." if run.main and better else ""
    return f"{text} The best place is where both arrows point.".strip() if charts else text


def _plan_says(run: Run) -> str:
    settings = "Every setting of this run and where it came from" if tables.plan(run) else ""
    return (
        f"{settings}, and the recipe it was run with."
        if settings and run.recipe
        else f"{settings}."
        if settings
        else ""
    )


def _samples(run: Run) -> dict[str, Any]:
    points, galleries, passages = samples.sample_charts(run), samples.galleries(run), samples.passages(run)
    says = []
    if points:
        says.append("Points that each arm generates, to the same scale; the shading is the density of the reference.")
    ways = samples.way_charts(run)
    if ways:
        says.append("The ways that samples take, from the same noise; every noise level is drawn to the data's scale.")
    if galleries:
        says.append("Images that each arm holds or makes; generators make them from the same noise, in one order.")
    if passages:
        says.append("The same prompts, continued by every arm.")
    return {"samples": points + ways, "galleries": galleries, "passages": passages, "samples_says": " ".join(says)}


def _terms(run: Run) -> list[dict[str, Any]]:
    rows = training.term_rows(run.student) if run.student else []
    return [
        {
            "name": row.name,
            "value": units.quantity(row.value),
            "weighted": units.quantity(row.weighted),
            "share": units.quantity(row.share, "%"),
            "dead": row.dead,
        }
        for row in rows
    ]


def _footer(run: Run) -> str:
    when, seed = run.items("created"), run.items("seed")
    pieces = [
        "Written by limbeck from this run’s files",
        f"run of {when}" if when else "",
        f"seed {seed}" if seed else "",
    ]
    return " · ".join(p for p in pieces if p) + "."
