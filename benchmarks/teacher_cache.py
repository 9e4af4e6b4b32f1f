"""Training from stored teacher outputs, against asking the teacher each time and against training without one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import Contender, Report, Row, now, race, steps_of
from benchmarks.tasks import LENGTH, TINY, Task, limbeck_loop
from limbeck.engine.cache import CacheSpec, TeacherCache, fill
from limbeck.engine.teacher import Teacher

ABOUT = "an epoch with stored teacher outputs, with the live teacher, and of the student alone"
GOAL = 1.05
TASK = Task("28x28", side=28, channels=1, student=16, teacher=48, depth=2, samples=64 * LENGTH)
"""Images of Fashion-MNIST's shape; an epoch is one round."""


def run(*, quick: bool = False) -> Report:
    """The three trainings in turns, an epoch each."""
    task, rounds, length = (TINY, 2, 4) if quick else (TASK, 8, LENGTH)
    steps = steps_of(rounds, length)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        teacher = Teacher(task.teacher_network(), {"logits"}, "teacher")
        began = now()
        cache = fill(folder / "cache", teacher, task.source(), CacheSpec("fp16"), {"logits"})
        filling = (now() - began).cpu
        laps = race(
            {
                "alone": _training(task, folder / "alone", steps, "supervised"),
                "cached": _training(task, folder / "cached", steps, "kd", cache),
                "live": _training(task, folder / "live", steps, "kd"),
            },
            rounds,
            length,
        )
    epochs = {name: [lap.cpu * length for lap in times] for name, times in laps.items()}
    rows = [
        Row.ratio("cached / alone", epochs["cached"], epochs["alone"], GOAL),
        Row.ratio("live / alone", epochs["live"], epochs["alone"]),
        *(Row.of(f"epoch, {name}", times, "s") for name, times in epochs.items()),
        Row("filling the cache, once", filling, "s"),
        _cost(task),
    ]
    return Report("teacher_cache", ABOUT, rows, ["ratios are of processor time, one thread"])


def _training(task: Task, folder: Path, steps: int, method: str, cache: TeacherCache | None = None) -> Contender:
    teacher = Teacher(task.teacher_network(), {"logits"}, "teacher")
    teacher.stored = cache

    def train(tick: Callable[[], None]) -> None:
        limbeck_loop(task, folder, steps, tick, method=method, teacher=teacher).fit()

    return train


@torch.no_grad()
def _cost(task: Task) -> Row:
    """Forward pass of the teacher in forward passes of the student."""
    images = task.source().tensors["input"][: task.batch]
    times: dict[str, list[float]] = {"teacher": [], "student": []}
    nets = {"teacher": task.teacher_network(), "student": task.network(task.student).eval()}
    for _ in range(6):
        for name, net in nets.items():
            began = now()
            net(images)
            times[name].append((now() - began).cpu)
    return Row.ratio("teacher / student, one forward pass", times["teacher"][1:], times["student"][1:])
