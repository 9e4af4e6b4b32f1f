"""A run in four lines, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from limbeck.report.labels import main_metric

QUALITY = {
    "accuracy": "accuracy {:.1%}",
    "fresh_accuracy": "accuracy of fresh networks {:.1%}",
    "miou": "mIoU {:.1%}",
    "ap50": "AP50 {:.1%}",
    "perplexity": "perplexity {:.3f}",
    "energy_distance": "energy distance {:.4f}",
    "frechet": "Fréchet distance {:.3f}",
}
"""What is told first, and how; of a run with none of these, what its report is headed by."""


def summary(results: Mapping[str, Any]) -> str:
    """Teacher, student and controls in a line each (quality, size, latency), then what was kept."""
    arms = results["arms"]
    width = max((len(a["label"]) for a in arms.values()), default=0)
    told = _told(results)
    lines = [f"{a['label']:<{width}}  {_line(a['metrics'], told)}" for a in arms.values()]
    return "\n".join([*lines, kept(results)])


def kept(results: Mapping[str, Any]) -> str:
    """What the student kept of its teacher, at what cost, and against training alone."""
    arms = results["arms"]
    teacher = next((a for a in arms.values() if a["role"] == "teacher"), None)
    student = arms.get("student", {}).get("metrics", {})
    control = next((a for a in arms.values() if a["role"] == "control"), None)
    says = []
    told = _told(results)
    if told is not None and told[0] in student:
        key, text = told
        mine = text.format(student[key])
        if teacher and key in teacher["metrics"]:
            says.append(f"the student's {mine} against the teacher's {_number(text, teacher['metrics'][key])}")
        else:
            says.append(f"the student reaches {mine}")
        if control and key in control["metrics"]:
            says.append(f"{_number(text, control['metrics'][key])} for {control['label'].lower()}")
    if teacher:
        says += _times(teacher["metrics"], student, "nfe", "fewer network evaluations", "more network evaluations")
        says += _times(teacher["metrics"], student, "parameters", "fewer parameters", "more parameters")
        says += _times(teacher["metrics"], student, "latency_ms", "lower latency", "higher latency")
    return "Kept: " + (", ".join(says) if says else "see the report")


def _times(before: Mapping[str, float], after: Mapping[str, float], key: str, less: str, more: str) -> list[str]:
    """How many times less (or more) of something the student takes than its teacher; nothing where it is the same."""
    if not before.get(key) or not after.get(key):
        return []
    ratio = before[key] / after[key]
    times = f"{max(ratio, 1 / ratio):.1f}"
    return [] if times == "1.0" else [f"{times}x {less if ratio > 1 else more}"]


def _told(results: Mapping[str, Any]) -> tuple[str, str] | None:
    """The metric that is told of all arms, and how; None where none was measured."""
    arms = results["arms"]
    first = arms.get("student", {}).get("metrics", {})
    return _chosen(first, results) or _chosen([k for a in arms.values() for k in a["metrics"]], results)


def _chosen(keys: Iterable[str], results: Mapping[str, Any]) -> tuple[str, str] | None:
    there = list(keys)
    known = next((key for key in QUALITY if key in there), None)
    if known is not None:
        return known, QUALITY[known]
    metric = main_metric(there, results.get("task", ""))
    if metric is None:
        return None
    return metric.key, f"{metric.name.replace('{', '').replace('}', '')} {'{:.1%}' if metric.unit == '%' else '{:.4g}'}"


def _number(text: str, value: float) -> str:
    return text.format(value).split()[-1]


def _line(metrics: Mapping[str, float], told: tuple[str, str] | None) -> str:
    parts = [told[1].format(metrics[told[0]])] if told is not None and told[0] in metrics else []
    if "parameters" in metrics:
        parts.append(f"{int(metrics['parameters']):,} parameters ({_bytes(metrics.get('bytes', 0))})")
    if "nfe" in metrics:
        parts.append(f"{int(metrics['nfe'])} network evaluations")
    if "latency_ms" in metrics:
        parts.append(f"{metrics['latency_ms']:.3f} ms")
    return ", ".join(parts)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"
