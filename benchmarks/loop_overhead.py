"""The loop against a hand-written one: what named terms, logs, shares, accumulation and resuming cost per step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measure import Lap, Meter, Report, Row, now, race, steps_of
from benchmarks.tasks import (
    HUNDRED_MS,
    LENGTH,
    LOGS,
    RUN,
    TEN_MS,
    TINY,
    PlainKD,
    Task,
    check_same,
    limbeck_loop,
    watched,
)
from limbeck.engine.devices import Placement, launch
from limbeck.engine.journal import MEASUREMENTS
from limbeck.engine.validation import Validator

ABOUT = "a KD step in limbeck's loop against the same step in a plain PyTorch loop"
GOAL = 1.03


def run(*, quick: bool = False) -> Report:
    """Both step sizes, then validation."""
    report = Report("loop_overhead", ABOUT)
    sizes = [(TINY, 2, 3)] if quick else [(TEN_MS, 20, LENGTH), (HUNDRED_MS, 6, LENGTH)]
    for task, rounds, length in sizes:
        report.rows += _stepping(task, rounds, length)
    task = TINY if quick else TEN_MS
    report.rows.append(_validation(task, 2 if quick else 15))
    report.notes.append(
        f"ratios are of processor time, one thread; the loop logs every 20 steps (JSON lines, and TensorBoard where it "
        f"is installed) and measures shares {MEASUREMENTS} times in {RUN} steps, the plain loop does neither"
    )
    return report


def _stepping(task: Task, rounds: int, length: int) -> list[Row]:
    plain, steps = PlainKD(task), steps_of(rounds, length)
    with tempfile.TemporaryDirectory() as folder:
        check_same(task, Path(folder) / "check")
        with watched() as meter:
            laps = race(
                {
                    "plain": lambda tick: plain.train(steps, tick),
                    "limbeck": lambda tick: _fit(task, Path(folder) / "run", steps, tick),
                },
                rounds,
                length,
            )
    return _rows(task, laps, meter, steps)


def _fit(task: Task, folder: Path, steps: int, tick: Callable[[], None]) -> None:
    limbeck_loop(task, folder, steps, tick, tensorboard=task is not TINY).fit()


def _rows(task: Task, laps: dict[str, list[Lap]], meter: Meter, steps: int) -> list[Row]:
    cpu = {name: [lap.cpu for lap in times] for name, times in laps.items()}
    wall = {name: [lap.wall for lap in times] for name, times in laps.items()}
    shares, logs = meter.cpu("shares") / steps, meter.cpu(*LOGS) / steps
    step = [c - shares - logs for c in cpu["limbeck"]]
    size = task.name
    parts = [label for label in LOGS if label in meter.laps]
    return [
        Row.of(f"{size}: plain loop, per step", [1e3 * c for c in cpu["plain"]], "ms"),
        Row.of(f"{size}: limbeck, per step", [1e3 * c for c in cpu["limbeck"]], "ms"),
        Row.ratio(f"{size}: limbeck / plain", cpu["limbeck"], cpu["plain"], GOAL),
        Row.ratio(f"{size}: limbeck / plain, wall clock", wall["limbeck"], wall["plain"]),
        Row.ratio(f"{size}: without shares and logs", step, cpu["plain"]),
        Row.of(f"{size}: one measurement of the shares", [1e3 * lap.cpu for lap in meter.laps["shares"]], "ms"),
        Row(f"{size}: shares, of the plain step", 100 * shares / _median(cpu["plain"]), "%"),
        Row(f"{size}: logs, of the plain step", 100 * logs / _median(cpu["plain"]), "%"),
        *(Row.of(f"{size}: one log, {label}", [1e3 * lap.cpu for lap in meter.laps[label]], "ms") for label in parts),
    ]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _validation(task: Task, rounds: int) -> Row:
    """A pass of the validator over the data against a hand-written evaluation."""
    source, student = task.source(), task.network(task.student)
    validator, fabric = Validator(source), launch(Placement(accelerator="cpu"))
    images, labels = source.tensors["input"], source.tensors["label"]

    @torch.no_grad()
    def plain() -> None:
        student.eval()
        nll = hits = 0.0
        for x, y in zip(images.split(256), labels.split(256), strict=True):
            logits = student(x)
            nll += F.cross_entropy(logits, y, reduction="sum").item()
            hits += (logits.argmax(1) == y).sum().item()
        student.train()

    times: dict[str, list[float]] = {"plain": [], "limbeck": []}
    for _ in range(rounds + 1):
        for name, call in (("plain", plain), ("limbeck", lambda: validator(student, fabric))):
            began = now()
            call()
            times[name].append((now() - began).cpu)
    return Row.ratio(f"{task.name}: validation / plain evaluation", times["limbeck"][1:], times["plain"][1:])
