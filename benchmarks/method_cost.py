"""What a step of each classifier method costs, in steps of the student that learns from labels alone.

All of them train the same student on the same images at their defaults, with the same teacher of four times its width
where they need one, and take turns. The documentation's table of methods shows these factors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.measure import Contender, Report, Row, race, steps_of
from benchmarks.tasks import TINY, Task, limbeck_loop
from limbeck import registry
from limbeck.engine.loop import Loop
from limbeck.errors import UserError

ABOUT = "a step of each method on 28 x 28 pixels, in steps of the student alone"
TASK = Task("28x28", side=28, channels=1, student=12, teacher=48, depth=2, samples=3200)
LENGTH = 6
ALONE = "supervised"


def run(*, quick: bool = False) -> Report:
    """All methods in turns."""
    task, rounds, length = (TINY, 2, 4) if quick else (TASK, 4, LENGTH)
    names = [ALONE, "kd", "fitnets", "dml"] if quick else [ALONE, *candidates()]
    steps = steps_of(rounds, length)
    report = Report("method_cost", ABOUT, notes=["ratios are of processor time, one thread"])
    with tempfile.TemporaryDirectory() as place:
        contenders: dict[str, Contender] = {}
        for name in names:
            try:
                _loop(task, Path(place) / f"look-{name}", steps, name, lambda: None)
            except UserError as error:
                report.notes.append(f"{name} is left out: {str(error).splitlines()[0]}")
            else:
                contenders[name] = _training(task, Path(place) / name, steps, name)
        laps = race(contenders, rounds, length)
    times = {name: [lap.cpu for lap in of] for name, of in laps.items()}
    report.rows = [Row.of(f"step, {ALONE}", [1000 * t for t in times[ALONE]], "ms")]
    others = sorted((name for name in times if name != ALONE), key=lambda name: median(times[name]))
    report.rows += [Row.ratio(name, times[name], times[ALONE]) for name in others]
    return report


def candidates() -> list[str]:
    """Methods of the vision family that learn from one stream of labelled images, with one teacher or none."""
    found = []
    for name in registry.names("method"):
        part = registry.find("method", name)
        needs = part.facts.get("needs", {})
        one = set(needs) <= {"teacher"} and needs.get("teacher", set()) <= {"logits", "features"}
        if part.family == "vision" and one and not part.facts.get("data_free", False):
            found.append(name)
    return found


def _loop(task: Task, folder: Path, steps: int, name: str, tick: Callable[[], None]) -> Loop:
    return limbeck_loop(task, folder, steps, tick, method=name)


def _training(task: Task, folder: Path, steps: int, name: str) -> Contender:
    def train(tick: Callable[[], None]) -> None:
        _loop(task, folder, steps, name, tick).fit()

    return train
