"""Which teacher suits a student: a grid of sizes, distilled alike, and the line through the best of each.

Zhang et al. 2023, "Towards the Law of Capacity Gap in Distilling Language Models" (arXiv 2311.07052).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

STAGES = ("teacher", "cache", "train", "evaluate")


@dataclass(frozen=True)
class Optimum:
    """The best teacher of one student.

    Attributes:
        student: parameters.
        teacher: parameters of the best teacher; between the tried ones, by a parabola over log size.
        interior: whether it is neither the smallest nor the largest that was tried.
    """

    student: int
    teacher: float
    interior: bool


@dataclass(frozen=True)
class Study:
    """Losses of a grid.

    Attributes:
        students: parameters [S], rising.
        teachers: parameters [T], rising.
        losses: [S, T, seeds].
    """

    students: Sequence[int]
    teachers: Sequence[int]
    losses: np.ndarray

    @property
    def optima(self) -> list[Optimum]:
        """The best teacher of every student, by the mean over seeds."""
        means = self.losses.mean(-1)
        return [optimum(size, self.teachers, row) for size, row in zip(self.students, means, strict=True)]

    @property
    def ratio(self) -> float | None:
        """``c`` of the law ``T* = c S``, from the students whose optimum is interior; None where none is."""
        return law([o for o in self.optima if o.interior])

    def summary(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "students": list(self.students),
            "teachers": list(self.teachers),
            "losses": self.losses.tolist(),
            "optima": [vars(o) for o in self.optima],
            "ratio": self.ratio,
        }

    def figure(self, path: Path) -> None:
        """Draw the loss of each student over the teacher's size, its best teacher marked."""
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(6, 4))
        axes = drawn.subplots()
        for size, row, best in zip(self.students, self.losses, self.optima, strict=True):
            spread = row.std(-1)
            (line,) = axes.plot(self.teachers, row.mean(-1), "o-", label=f"student of {size:,}")
            axes.fill_between(self.teachers, row.mean(-1) - spread, row.mean(-1) + spread, alpha=0.2)
            axes.axvline(best.teacher, color=line.get_color(), ls="-" if best.interior else ":", lw=1)
        axes.set(xscale="log", xlabel="parameters of the teacher", ylabel="loss of the student")
        axes.set_title(
            "no best size inside" if self.ratio is None else f"best teacher: {self.ratio:.2g} times the student"
        )
        axes.legend()
        drawn.savefig(path, bbox_inches="tight")


def optimum(student: int, teachers: Sequence[int], losses: Sequence[float] | np.ndarray) -> Optimum:
    """Where the loss over the teacher's size is least.

    At an inner point the minimum of the parabola through it and its neighbours, over the logarithm of the size.

    Args:
        student: its parameters.
        teachers: sizes, rising.
        losses: the student's, by teacher.

    Raises:
        ValueError: fewer than three teachers, or sizes that do not rise.
    """
    if len(teachers) < 3 or len(teachers) != len(losses) or any(np.diff(teachers) <= 0):
        raise ValueError(f"three or more rising sizes with a loss each are needed, got {list(teachers)}")
    best = int(np.argmin(losses))
    if best in (0, len(teachers) - 1):
        return Optimum(student, float(teachers[best]), False)
    x, y = np.log(np.asarray(teachers, float)[best - 1 : best + 2]), np.asarray(losses, float)[best - 1 : best + 2]
    curve, slope, _ = np.polyfit(x - x[1], y, 2)
    at = x[1] - (slope / (2 * curve) if curve > 0 else 0.0)
    return Optimum(student, float(np.exp(at)), True)


def law(optima: Sequence[Optimum]) -> float | None:
    """``c`` of ``T* = c S`` by least squares; None without optima."""
    if not optima:
        return None
    student, teacher = (np.array([getattr(o, name) for o in optima], float) for name in ("student", "teacher"))
    return float((student @ teacher) / (student @ student))


def study(
    recipe: Recipe,
    teachers: Sequence[Mapping[str, Any]],
    students: Sequence[Mapping[str, Any]],
    *,
    run: Callable[..., Any],
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "nll_per_token",
    runs: Path = Path("runs"),
    quiet: bool = True,
) -> Study:
    """Distil every student from every teacher, alike; writes ``capacity.json`` and ``capacity.png`` into ``runs``.

    Every run trains as long, and so does every teacher: teachers of unlike training would be compared otherwise.

    Args:
        recipe: what the runs share: data, method, training.
        teachers: overrides of its ``teacher`` block, three or more sizes.
        students: overrides of its ``student`` block.
        run: how a recipe is run: :func:`limbeck.run_recipe`.
        seeds: of the students.
        metric: what is compared; less is better.
        runs: where the runs are.
        quiet: without progress.

    Raises:
        UserError: too few teachers, or a metric that the runs do not have.
    """
    if len(teachers) < 3:
        raise UserError(f"capacity study: an optimum takes three teachers or more, got {len(teachers)}")
    sizes: dict[str, dict[int, int]] = {"teacher": {}, "student": {}}
    losses = np.zeros((len(students), len(teachers), len(seeds)))
    common = {"claim": None, "controls": False, "stages": [{"name": name} for name in STAGES]}
    for i, student in enumerate(students):
        for j, teacher in enumerate(teachers):
            own = recipe.with_overrides({**common, "teacher": dict(teacher), "student": dict(student)})
            own = own.with_overrides({"evaluate": [*own.tree.get("evaluate", ["perplexity"]), "efficiency"]})
            for k, seed in enumerate(seeds):
                found = run(own, runs=runs, seed=seed, quiet=quiet).metrics
                if metric not in found["student"]:
                    raise UserError(f"capacity study: no metric '{metric}'; there is {', '.join(found['student'])}")
                losses[i, j, k] = found["student"][metric]
                sizes["teacher"][j] = int(found["teacher"]["parameters"])
                sizes["student"][i] = int(found["student"]["parameters"])
    made = _sorted(
        [sizes["student"][i] for i in sizes["student"]], [sizes["teacher"][j] for j in sizes["teacher"]], losses
    )
    runs.mkdir(parents=True, exist_ok=True)
    write_json(runs / "capacity.json", made.summary())
    made.figure(runs / "capacity.png")
    return made


def _sorted(students: list[int], teachers: list[int], losses: np.ndarray) -> Study:
    """By rising size, however they were given."""
    rows, columns = np.argsort(students), np.argsort(teachers)
    return Study([students[i] for i in rows], [teachers[j] for j in columns], losses[rows][:, columns])
