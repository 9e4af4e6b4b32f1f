"""What a loop writes down: every term by name, its share of the gradient, and the alarm when one dies or explodes;
beside them the numbers that the method gives of its health.

Values stay on the device until :meth:`Journal.flush` brings them over in one transfer, so that logging costs no
synchronisation in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.health import Alarm, Seen

MEASUREMENTS = 20
"""How often in a run the shares of the gradient (one backward per term) and the method's health are measured."""
PATIENCE = 10
"""After how many measurements in a row without value and gradient a term counts as dead."""


class NotFiniteError(ArithmeticError):
    """A loss term became NaN or infinite. Checkpoints of the steps before it stay."""


class DeadTermError(ValueError):
    """A loss term has been exactly zero, in value and gradient, at every measurement."""


class Journal:
    """Collects the numbers of a training between flushes."""

    def __init__(self, alarms: Sequence[Alarm] = ()) -> None:
        self.alarms = alarms
        self.shares: dict[str, list[float]] = {}
        self.health: dict[str, list[Seen]] = {}
        self._pending: list[tuple[int, str, Mapping[str, Tensor | float]]] = []

    def add(self, step: int, role: str, values: Mapping[str, Tensor | float]) -> None:
        """Keep values (numbers, and scalars on the device without gradient) of one update until the next flush."""
        self._pending.append((step, role, values))

    def flush(self) -> dict[str, float]:
        """The means by name since the last flush.

        Raises:
            NotFiniteError: a term was NaN or infinite; names the term, its learner and the step.
        """
        found: dict[tuple[str, str], list[float]] = {}
        for _, role, values in self._settled():
            for key, number in values.items():
                found.setdefault((key, role), []).append(number)
        self._pending = []
        return {_name(*place): sum(series) / len(series) for place, series in found.items()}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, so that its log is that of an uninterrupted one: what was not flushed yet, too.

        Raises:
            NotFiniteError: as :meth:`flush`.
        """
        pending = [list(entry) for entry in self._settled()]
        return {"shares": self.shares, "health": self.health, "pending": pending}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.shares = saved["shares"]
        self.health = {name: [Seen(*entry) for entry in series] for name, series in saved.get("health", {}).items()}
        self._pending = [(step, role, values) for step, role, values in saved["pending"]]

    def _settled(self) -> Sequence[tuple[int, str, Mapping[str, float]]]:
        """What is pending, as numbers from here on."""
        numbers = iter(_numbers([v for _, _, values in self._pending for v in values.values()]))
        settled = [(step, role, {key: next(numbers) for key in values}) for step, role, values in self._pending]
        for step, role, values in settled:
            for key, number in values.items():
                if not math.isfinite(number) and key.startswith(("term/", "weighted/")):
                    term = key.split("/", 1)[1]
                    raise NotFiniteError(f"term '{term}' of learner '{role}' became {number} at step {step}")
        self._pending = list(settled)
        return settled

    def measure(
        self, step: int, role: str, weighted: Mapping[str, Tensor], gradients: Callable[[Tensor], Sequence[Tensor]]
    ) -> None:
        """Take the norm of each term's gradient, as a share of their sum.

        Args:
            step: the global step.
            role: the learner that is updated.
            weighted: the terms as they enter the loss.
            gradients: the gradients of a value on the learner's parameters; the graph must stay.

        Raises:
            DeadTermError: a term had neither value nor gradient at any of the measurements.
        """
        norms = {n: _norm(gradients(v)) if v.requires_grad else 0.0 for n, v in weighted.items()}
        total = sum(norms.values())
        shares = {name: norm / total if total > 0 else 0.0 for name, norm in norms.items()}
        self.add(step, role, {f"share/{n}": s for n, s in shares.items()})
        for name, share in shares.items():
            seen = self.shares.setdefault(f"{role}: {name}", [])
            alive = share > 0 or float(weighted[name].detach()) != 0
            seen.append(share if alive else -1.0)
            if len(seen) >= PATIENCE and all(s < 0 for s in seen):
                raise DeadTermError(
                    f"term '{name}' of learner '{role}' has been exactly zero since the start "
                    f"({len(seen)} measurements): its weight, mask or wiring is wrong"
                )

    def look(self, step: int, found: Mapping[str, tuple[float, float]]) -> None:
        """Keep a measurement of the method's health, each number as its sum and count; empty ones are left out."""
        for name, (total, count) in found.items():
            if count > 0 and math.isfinite(total / count):
                self.health.setdefault(name, []).append(seen := Seen(step, total, count))
                self.add(step, "", {f"health/{name}": seen.value})

    def warnings(self) -> list[str]:
        """A line for each dim term, and for each alarm of the method that its health sets off."""
        return [*self._dim(), *(says for alarm in self.alarms if (says := alarm(self.health)) is not None)]

    def _dim(self) -> list[str]:
        """A line for each term that hardly moves its learner (under 1 % of the gradient), if it is not alone there."""
        by_role: dict[str, int] = {}
        for name in self.shares:
            by_role[name.split(": ")[0]] = by_role.get(name.split(": ")[0], 0) + 1
        found = []
        for name, values in self.shares.items():
            mean = sum(max(v, 0.0) for v in values) / len(values)
            if mean < 0.01 and by_role[name.split(": ")[0]] > 1:
                found.append(f"term '{name}' contributes {100 * mean:.2g} % of the gradient: is its weight right?")
        return found


def number(value: Tensor) -> Tensor | float:
    """A scalar to note: its number at once where that is no wait (on the CPU), else the scalar without gradient."""
    return value.item() if value.is_cpu else value.detach()


def _numbers(values: Sequence[Tensor | float]) -> list[float]:
    """The values as numbers; those on an accelerator come over in one transfer."""
    away = [v for v in values if isinstance(v, Tensor) and not v.is_cpu]
    fetched = iter(torch.stack([v.reshape(()).float() for v in away]).tolist() if away else ())
    return [next(fetched) if isinstance(v, Tensor) and not v.is_cpu else float(v) for v in values]


def _norm(gradients: Sequence[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _name(key: str, role: str) -> str:
    if role in ("", "student"):
        return key
    kind, _, name = key.partition("/")
    return f"{kind}/{role}.{name}"


def note(values: Mapping[str, Any]) -> str:
    """The few numbers that a progress line has room for."""
    shown = [(k, v) for k, v in values.items() if k.startswith(("term/", "val/")) and k.count("/") == 1]
    return "  ".join(f"{k.removeprefix('term/')} {v:.4g}" for k, v in shown[:4])
