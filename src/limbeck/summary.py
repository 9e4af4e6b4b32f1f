"""A run in four lines, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUALITY = (
    ("accuracy", "accuracy {:.1%}", True),
    ("fresh_accuracy", "accuracy of fresh networks {:.1%}", True),
    ("miou", "mIoU {:.1%}", True),
    ("ap50", "AP50 {:.1%}", True),
    ("perplexity", "perplexity {:.3f}", False),
    ("energy_distance", "energy distance {:.4f}", False),
    ("frechet", "Fréchet distance {:.3f}", False),
)


def summary(results: Mapping[str, Any]) -> str:
    """Teacher, student and controls in a line each (quality, size, latency), then what was kept."""
    arms = results["arms"]
    width = max((len(a["label"]) for a in arms.values()), default=0)
    lines = [f"{a['label']:<{width}}  {_line(a['metrics'])}" for a in arms.values()]
    return "\n".join([*lines, kept(results)])


def kept(results: Mapping[str, Any]) -> str:
    """What the student kept of its teacher, at what cost, and against training alone."""
    arms = results["arms"]
    teacher = next((a for a in arms.values() if a["role"] == "teacher"), None)
    student = arms.get("student", {}).get("metrics", {})
    control = next((a for a in arms.values() if a["role"] == "control"), None)
    says = []
    for key, text, _ in QUALITY:
        if key not in student:
            continue
        mine = text.format(student[key])
        if teacher and key in teacher["metrics"]:
            says.append(f"the student's {mine} against the teacher's {_number(text, teacher['metrics'][key])}")
        else:
            says.append(f"the student reaches {mine}")
        if control and key in control["metrics"]:
            says.append(f"{_number(text, control['metrics'][key])} for {control['label'].lower()}")
        break
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


def _number(text: str, value: float) -> str:
    return text.format(value).split()[-1]


def _line(metrics: Mapping[str, float]) -> str:
    parts = [text.format(metrics[key]) for key, text, _ in QUALITY if key in metrics][:1]
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
