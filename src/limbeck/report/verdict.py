"""A run in one sentence, and the few sentences that keep it honest."""

from __future__ import annotations

from limbeck.report import units
from limbeck.report.classes import sample_count
from limbeck.report.labels import Metric, info
from limbeck.report.results import Arm, Run

ALIKE = 1.05
"""A cost that differs by less than this factor is not worth a word."""
SAVINGS = (
    ("nfe", "{} fewer network evaluations", "{} more network evaluations"),
    ("parameters", "{} fewer parameters", "{} more parameters"),
    ("bytes", "{} fewer bytes", "{} more bytes"),
    ("latency_ms", "{} lower latency", "{} higher latency"),
)


def headline(run: Run) -> str:
    """The verdict: what the student does beside its teacher, at what cost, and what training alone gives."""
    metric, student = run.main, run.student
    if student is None or metric is None:
        return f"{run.title}: nothing was measured."
    value = student.value(metric.key)
    if value is None:
        return f"The student has no finite {metric.name}: this run gave no usable result."
    teacher = run.teacher.value(metric.key) if run.teacher else None
    if metric.key == "fresh_accuracy":
        return _condensed(run, metric, value, teacher)
    quality = _against_teacher(metric, value, teacher)
    gains, losses = savings(run)
    cost = f" with {_and(gains[:2])}" if gains else ""
    if losses:
        cost += f", but {_and(losses[:2])}" if gains else f" with {_and(losses[:2])}"
    return f"The student {quality}{cost}{_alone(run, metric, value, teacher)}."


def savings(run: Run) -> tuple[list[str], list[str]]:
    """What the student saves and what it costs more than its teacher, as phrases."""
    gains: list[str] = []
    losses: list[str] = []
    if run.student is None or run.teacher is None:
        return gains, losses
    for key, fewer, more in SAVINGS:
        own, other = run.student.value(key), run.teacher.value(key)
        if not own or not other or own <= 0 or other <= 0:
            continue
        if key == "bytes" and run.teacher.value("parameters") and run.student.value("parameters"):
            continue
        if other / own >= ALIKE:
            gains.append(fewer.format(units.times(other / own)))
        elif own / other >= ALIKE:
            losses.append(more.format(units.times(own / other)))
    return gains, losses


def remarks(run: Run) -> list[str]:
    """What a careful reader asks next: the gap that was closed, how sure that is, what distilling took."""
    return [s for s in (_gap_closed(run), _certainty(run), _effort(run)) if s]


def interval(arm: Arm, metric: Metric) -> tuple[float, float] | None:
    """The 95 % interval of a share of correct test samples, where their number is known."""
    value, samples = arm.value(metric.key), sample_count(arm)
    if metric.key not in ("accuracy", "top5_accuracy") or value is None or samples is None or not 0 <= value <= 1:
        return None
    return units.wilson(value, samples)


def _against_teacher(metric: Metric, value: float, teacher: float | None) -> str:
    shown = units.quantity(value, metric.unit)
    if teacher is None:
        return f"reaches {_article(metric)}{metric.name} of {shown}"
    if metric.better is None:
        return f"has {_article(metric)}{metric.name} of {shown} (teacher: {units.quantity(teacher, metric.unit)})"
    gain = metric.gain(value, teacher)
    if abs(gain) < 5e-4 * max(abs(teacher), 1e-9) or shown == units.quantity(teacher, metric.unit):
        return f"matches the teacher’s {metric.name} of {shown}"
    if gain > 0:
        return f"beats the teacher’s {metric.name}, {shown} to {units.quantity(teacher, metric.unit)},"
    if _is_kept(metric, teacher):
        return f"keeps {units.percent(value / teacher)} of the teacher’s {metric.name}"
    return f"reaches {_article(metric)}{metric.name} of {shown} (teacher: {units.quantity(teacher, metric.unit)})"


def _alone(run: Run, metric: Metric, value: float, teacher: float | None) -> str:
    alone = run.alone
    other = alone.value(metric.key) if alone else None
    if alone is None or other is None:
        return ""
    shown = units.quantity(other, metric.unit)
    who = "trained alone it" if alone.key == "alone" else f"“{alone.label}”"
    if shown == units.quantity(value, metric.unit):
        return f"; {who} reaches the same"
    better = "does better: it " if metric.better and metric.gain(other, value) > 0 else ""
    kept = teacher is not None and metric.gain(value, teacher) < 0 and _is_kept(metric, teacher)
    return f"; {who} {better}" + (f"keeps {units.percent(other / teacher)}" if kept and teacher else f"reaches {shown}")


def _condensed(run: Run, metric: Metric, value: float, whole: float | None) -> str:
    """The verdict on a condensed data set: networks trained from scratch on it, on all of it, on the control."""

    def reached(share: float) -> str:
        kept = whole is not None and share < whole
        return (
            f"keep {units.percent(share / whole)} of their accuracy"
            if kept and whole
            else f"reach {units.percent(share)}"
        )

    def images(arm: Arm | None) -> str:
        count = arm.value("images") if arm else None
        return units.number(count) if count else ""

    few, many = images(run.student), images(run.teacher)
    on = f"{few} images instead of {many}" if few and many else f"{few} images" if few else "the condensed data"
    other = run.alone.value(metric.key) if run.alone else None
    control = f"; on “{run.alone.label}” they {reached(other)}" if run.alone and other is not None else ""
    return f"On {on}, fresh networks {reached(value)}{control}."


def _gap_closed(run: Run) -> str:
    metric = run.main
    arms = (run.teacher, run.student, run.alone)
    if metric is None or metric.better is None or any(arm is None for arm in arms):
        return ""
    teacher, student, alone = (arm.value(metric.key) if arm else None for arm in arms)
    if teacher is None or student is None or alone is None or run.alone is None:
        return ""
    gap, closed = metric.gain(teacher, alone), metric.gain(student, alone)
    if gap <= 0 or not 0 < closed <= gap:
        return ""
    whole = (
        "the teacher" if run.teacher and run.teacher.label == "Teacher" else f"“{run.teacher and run.teacher.label}”"
    )
    name = "training alone" if run.alone.key == "alone" else f"“{run.alone.label}”"
    what = "Condensation" if metric.key == "fresh_accuracy" else "Distillation"
    return f"{what} closes {100 * closed / gap:.0f}{units.GAP}% of the gap in {metric.name} between {name} and {whole}."


def _certainty(run: Run) -> str:
    metric, student, alone = run.main, run.student, run.alone
    if metric is None or student is None:
        return ""
    around = interval(student, metric)
    if around is None:
        return "One run, one seed: the comparison over several seeds says how much of this is chance."
    half = 50 * (around[1] - around[0])
    text = f"One seed, {sample_count(student):,} test samples: ±{half:.1f} points at 95{units.GAP}% confidence."
    text = text.replace(",", units.GAP, 1) if (sample_count(student) or 0) >= 1000 else text
    other = interval(alone, metric) if alone else None
    if other and around[0] < other[1] and other[0] < around[1]:
        text += " The intervals of the student and of the control overlap: more seeds are needed to tell them apart."
    return text


def _effort(run: Run) -> str:
    student, alone = run.student, run.alone
    if student is None or not student.train_seconds:
        return ""
    steps = f" and {student.steps:,} steps".replace(",", units.GAP) if student.steps else ""
    text = f"Distilling took {units.seconds(student.train_seconds)}{steps}"
    if alone and alone.train_seconds and alone.key == "alone":
        text += f"; training alone took {units.seconds(alone.train_seconds)}"
    return text + "."


def _is_kept(metric: Metric, teacher: float) -> bool:
    return metric.unit == "%" and metric.better == "higher" and teacher > 0


def _article(metric: Metric) -> str:
    return "an " if info(metric.key).name[:1].lower() in "aeio" else "a "


def _and(phrases: list[str]) -> str:
    return " and ".join(phrases)
