"""Schedules: a number as a function of how far the run is. They hold no state, so a resumed run needs none.

A learning-rate schedule is a factor on the optimizer's rate. Any other number of a method or a loss term takes a
schedule as its value: ``alpha: {name: linear, start: 0, end: 1, until: 0.3}``.
"""

from __future__ import annotations

import math
from typing import Protocol

from limbeck.errors import UserError
from limbeck.registry import register


class Schedule(Protocol):
    """``value(progress, step)`` at ``progress`` in [0, 1] of the run and global step ``step``."""

    def value(self, progress: float, step: int) -> float:
        """The number at this point of the run."""
        ...


@register("schedule", name="constant")
class Constant:
    """Always the same value."""

    def __init__(self, *, start: float = 1.0) -> None:
        self.start = start

    def value(self, progress: float, step: int) -> float:
        """The constant."""
        return self.start


@register("schedule", name="linear")
class Linear:
    """A straight line from ``start`` to ``end`` between the shares ``begin`` and ``until`` of the run."""

    def __init__(self, *, start: float = 1.0, end: float = 0.0, begin: float = 0.0, until: float = 1.0) -> None:
        if not 0 <= begin < until <= 1:
            raise UserError(f"linear schedule: 0 <= begin < until <= 1 must hold, got begin={begin}, until={until}")
        self.start, self.end, self.begin, self.until = start, end, begin, until

    def value(self, progress: float, step: int) -> float:
        """The line, held flat before and after."""
        share = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        return self.start + (self.end - self.start) * share


@register("schedule", name="cosine")
class Cosine:
    """Half a cosine from ``start`` to ``end``, after a linear warm-up from 0 over the share ``warmup`` of the run."""

    def __init__(self, *, start: float = 1.0, end: float = 0.0, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise UserError(f"cosine schedule: warmup is a share of the run in [0, 1), got {warmup}")
        self.start, self.end, self.warmup = start, end, warmup

    def value(self, progress: float, step: int) -> float:
        """The warm-up line, then the cosine."""
        if progress < self.warmup:
            return self.start * progress / self.warmup
        share = (progress - self.warmup) / (1 - self.warmup)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@register("schedule", name="step")
class Step:
    """Multiplied by ``factor`` at each share in ``at`` of the run (0.625, 0.75, 0.875: the CIFAR-100 recipe)."""

    def __init__(self, *, start: float = 1.0, factor: float = 0.1, at: list[float] | None = None) -> None:
        self.start, self.factor, self.at = start, factor, sorted(at if at is not None else [0.625, 0.75, 0.875])

    def value(self, progress: float, step: int) -> float:
        """The stair that ``progress`` is on."""
        return self.start * self.factor ** sum(progress >= a for a in self.at)


@register("schedule", name="exponential")
class Exponential:
    """A geometric path from ``start`` to ``end`` (both positive)."""

    def __init__(self, *, start: float = 1.0, end: float = 0.01) -> None:
        if start <= 0 or end <= 0:
            raise UserError(f"exponential schedule: start and end must be positive, got {start} and {end}")
        self.start, self.end = start, end

    def value(self, progress: float, step: int) -> float:
        """The geometric interpolation."""
        return self.start * (self.end / self.start) ** min(progress, 1.0)
