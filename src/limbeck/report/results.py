"""What a run left behind, read for a page: every piece may be missing, none is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import UserError
from limbeck.report import labels
from limbeck.report.labels import Metric
from limbeck.report.palette import ROLES, Style, styles
from limbeck.report.units import finite

Floats = NDArray[np.float64]
Line = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One value over training: ``x`` (see :attr:`Arm.axis`) and ``y``, both [N], finite, x ascending."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class Arm:
    """One trained thing of a run: the teacher, the student, or a control."""

    key: str
    role: str
    label: str
    style: Style
    describe: str = ""
    method: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    train_seconds: float | None = None
    steps: int | None = None
    log: tuple[Line, ...] = ()

    def value(self, key: str) -> float | None:
        """A metric as a finite number, or None."""
        return finite(self.metrics.get(key))

    @property
    def axis(self) -> str:
        """What the curves of this arm run over: ``epoch`` where every line has one, else ``step``."""
        return "epoch" if self.log and all(finite(line.get("epoch")) is not None for line in self.log) else "step"

    def curve(self, key: str, split: str = "train", axis: str = "step") -> Curve | None:
        """A logged value over training, or None with fewer than two finite points."""
        rows = [
            (finite(line.get(axis)), finite(line.get(key))) for line in self.log if line.get("split", "train") == split
        ]
        kept = sorted((x, y) for x, y in rows if x is not None and y is not None)
        if len(kept) < 2:
            return None
        points = np.asarray(kept, dtype=np.float64)
        return Curve(points[:, 0], points[:, 1])

    def logged(self, split: str = "train") -> list[str]:
        """The names of the values logged for a split, in the order they first occur."""
        return list(dict.fromkeys(k for line in self.log if line.get("split", "train") == split for k in line))


@dataclass(frozen=True)
class Run:
    """A run's results, as a page needs them."""

    title: str
    arms: tuple[Arm, ...]
    data: Mapping[str, Any]
    recipe: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What is predicted: classification, language or generation."""
        return str(self.data.get("task") or "")

    @property
    def teacher(self) -> Arm | None:
        """The teacher: the arm of that name, else the first of that role."""
        return self._arm("teacher")

    @property
    def student(self) -> Arm | None:
        """What the run delivers."""
        return self._arm("student")

    @property
    def alone(self) -> Arm | None:
        """What the student is measured against: itself trained alone, a random subset, else the first control."""
        return next((arm for arm in self.arms if arm.style == ROLES["alone"]), None)

    @property
    def main(self) -> Metric | None:
        """What the run is judged by: the first of the task's metrics that an arm has, the student's before others'."""
        chosen = labels.main_metric(self.student.metrics if self.student else (), self.task)
        return chosen or labels.main_metric([k for arm in self.arms for k in arm.metrics], self.task)

    @property
    def class_names(self) -> list[str]:
        """The classes' names, as far as they are known."""
        spec = self.data.get("spec")
        names = spec.get("class_names") if isinstance(spec, Mapping) else None
        return [clean(name) for name in names] if isinstance(names, list | tuple) else []

    def items(self, key: str) -> str:
        """A text of the results, or the empty string."""
        value = self.data.get(key)
        return clean(value) if isinstance(value, str | int | float) else ""

    def lines(self, key: str) -> list[str]:
        """A list of texts of the results."""
        value = self.data.get(key)
        return [clean(v) for v in value] if isinstance(value, list) else []

    def mapping(self, key: str) -> dict[str, Any]:
        """A map of the results, without its empty values."""
        value = self.data.get(key)
        return {str(k): v for k, v in value.items() if v not in (None, "")} if isinstance(value, Mapping) else {}

    def _arm(self, role: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.style == ROLES[role]), None)


def load(run_dir: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: there is no ``results.json``, or it is not a JSON object.
    """
    data = _json(run_dir / "results.json", required=True)
    given = data.get("arms")
    arms = {str(k): v for k, v in given.items() if isinstance(v, Mapping)} if isinstance(given, Mapping) else {}
    worn = _worn(arms)
    return Run(
        title=clean(data.get("title") or data.get("slug") or run_dir.name),
        arms=tuple(sorted((_arm(run_dir, k, v, worn[k]) for k, v in arms.items()), key=_place)),
        data=data,
        recipe=_text(run_dir / "recipe.yaml"),
        manifest=_json(run_dir / "manifest.json", required=False),
    )


def clean(value: object) -> str:
    """A text without the control characters that no page can hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in str(value)).strip()


def points(value: object, width: int | None = None) -> Floats | None:
    """A list of equally long lists of numbers as a matrix [N, D] of its finite rows, or None.

    Args:
        value: what the results hold.
        width: the number of columns that is needed.
    """
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if matrix.ndim != 2 or not matrix.size or (width is not None and matrix.shape[1] != width):
        return None
    kept = matrix[np.isfinite(matrix).all(axis=1)]
    return kept if len(kept) else None


def per_arm(run: Run, key: str) -> dict[str, Any]:
    """What the arms' details hold under ``key``, by arm; one may hold it for others (``{"teacher": [...]}``)."""
    found: dict[str, Any] = {}
    for arm in run.arms:
        value = arm.details.get(key)
        if isinstance(value, Mapping):
            found = {**{str(k): v for k, v in value.items()}, **found}
        elif value:
            found[arm.key] = value
    order = {arm.key: i for i, arm in enumerate(run.arms)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _arm(run_dir: Path, key: str, arm: Mapping[str, Any], style: Style) -> Arm:
    metrics, details, steps = arm.get("metrics"), arm.get("details"), finite(arm.get("steps"))
    return Arm(
        key=key,
        role=_role(key, arm),
        label=clean(arm.get("label") or {"alone": "Student alone"}.get(key, key.replace("_", " ").capitalize())),
        style=style,
        describe=clean(arm.get("describe") or ""),
        method=clean(arm.get("method") or ""),
        metrics={str(k): v for k, v in metrics.items()} if isinstance(metrics, Mapping) else {},
        details=details if isinstance(details, Mapping) else {},
        train_seconds=finite(arm.get("train_seconds")),
        steps=int(steps) if steps else None,
        log=tuple(_log(run_dir, arm.get("log"))),
    )


def _role(key: str, arm: Mapping[str, Any]) -> str:
    return str(arm.get("role") or (key if key in ("teacher", "student") else "control"))


def _worn(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Style]:
    """The style of each arm: teacher, student and the first control have their own."""
    named: dict[str, str] = {}
    for role, first in (("teacher", ("teacher",)), ("student", ("student",)), ("control", ("alone", "random"))):
        keys = [k for k in (*first, *arms) if k in arms and _role(k, arms[k]) == role]
        if keys:
            named[keys[0]] = role
    return styles(arms, {key: ROLES["alone" if role == "control" else role] for key, role in named.items()})


def _place(arm: Arm) -> tuple[int, bool]:
    return {"teacher": 0, "student": 1}.get(arm.role, 2), arm.style not in ROLES.values()


def _log(run_dir: Path, name: object) -> Iterator[Line]:
    """The lines of a metrics log; one that a crash cut off is left out.

    A relative name stays inside the run directory. A teacher that runs share lies elsewhere, under an absolute name.
    """
    if not isinstance(name, str) or not name:
        return
    path = (run_dir / name).resolve()
    inside = path.is_relative_to(run_dir.resolve()) or Path(name).is_absolute()
    if not inside or path.suffix != ".jsonl" or not path.is_file():
        return
    for text in path.read_text(encoding="utf8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _text(path: Path) -> str:
    return clean(path.read_text(encoding="utf8", errors="replace")) if path.is_file() else ""


def _json(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise UserError(f"{path.parent} holds no results.json: give the directory of a run that has finished")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        if required:
            raise UserError(f"{path} is not JSON ({error}): run the evaluation again") from error
        return {}
    if not isinstance(found, dict):
        if required:
            raise UserError(f"{path} holds a {type(found).__name__}: expected an object with 'title' and 'arms'")
        return {}
    return found
