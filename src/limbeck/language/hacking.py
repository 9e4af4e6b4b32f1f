"""Signs that a student follows its teacher where the teacher is wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.engine.health import Series

LEAST = 8
"""Measurements from which on a law can be told from noise."""


class Law(NamedTuple):
    """A power law ``value = scale * x ** slope``, and how far its own points are from it (log, standard deviation)."""

    scale: float
    slope: float
    spread: float

    def residual(self, x: float, value: float) -> float:
        """How far above the law a point is, in nats."""
        return math.log(value) - math.log(self.scale) - self.slope * math.log(x)


def power_law(xs: Sequence[float], values: Sequence[float]) -> Law:
    """The straight line through points in log-log, by least squares.

    Raises:
        ValueError: fewer than three points, or one that has no logarithm.
    """
    if len(xs) != len(values) or len(xs) < 3 or min(*xs, *values) <= 0:
        raise ValueError("a power law needs three points or more, all positive")
    x, y = [math.log(v) for v in xs], [math.log(v) for v in values]
    slope, start = statistics.linear_regression(x, y)
    spread = math.sqrt(sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / max(len(x) - 2, 1))
    return Law(math.exp(start), slope, spread)


def leaves(series: Series, *, width: float = 3.0, floor: float = 0.1) -> int | None:
    """The step from which on a series stays above the power law of its first half; None while it keeps to it.

    The sign of teacher hacking where no oracle is there (Tiapkin et al. 2025, arXiv 2502.02671, section 5): a proxy
    that improves by a power law is learning, one that bends away from it has begun to fit what it should not.

    Args:
        series: measurements of the proxy; steps count from 0.
        width: how many standard deviations of the first half above its law are too many.
        floor: nats above the law that are never too many.
    """
    seen = [s for s in series if s.value > 0]
    if len(seen) < LEAST:
        return None
    # The first measurement is of the student before it learnt anything of this.
    early = seen[1 : len(seen) // 2 + 1]
    law = power_law([s.step + 1 for s in early], [s.value for s in early])
    far = max(width * law.spread, floor)
    since = None
    for s in reversed(seen[len(seen) // 2 + 1 :]):
        if law.residual(s.step + 1, s.value) <= far:
            break
        since = s.step
    return since


def rises(series: Series, by: float = 0.05) -> int | None:
    """The step of the lowest value, if the last three values (their median) are above it by this share; else None."""
    if len(series) < LEAST:
        return None
    least = min(series, key=lambda s: s.value)
    last = statistics.median(s.value for s in series[-3:])
    return least.step if last > least.value * (1 + by) else None
