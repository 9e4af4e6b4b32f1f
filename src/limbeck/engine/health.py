"""How a training goes, beside its loss: numbers that a method gives now and then, and what in them is a bad sign.

A number comes as a sum and a count, like a loss term, so that it does not depend on how a batch is cut, and several
measurements can be pooled where one alone is noise. Which numbers there are and what to do about them a method says
(:meth:`limbeck.engine.method.Method.health`, :meth:`~limbeck.engine.method.Method.alarms`); here is only how they are
taken without a trace in the training, and the statistics that judge a series of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.engine import rng

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from limbeck.engine.method import Batch, Clock, Method


class Seen(NamedTuple):
    """One measurement: at which global step, and ``total / counted`` of it."""

    step: int
    total: float
    counted: float

    @property
    def value(self) -> float:
        """The number itself."""
        return self.total / self.counted


Series = Sequence[Seen]
Alarm = Callable[[Mapping[str, Series]], str | None]
"""Looks at all series of a training by name, and says in one line what is wrong and what to do; None is well."""


def look(method: Method, micro: Sequence[Batch], clock: Clock, fabric: Fabric) -> dict[str, tuple[float, float]]:
    """Sum and count of every number of a method's health, over the micro-batches of all processes.

    All processes have to ask at the same step: networks may be sharded. Weights, statistics of layers and random
    generators are afterwards what they were.
    """
    modules = [*method.learners.values(), *(teacher.module for teacher in method.teachers.values())]
    totals: dict[str, list[Tensor]] = {}
    with untouched(modules, fabric.device), torch.no_grad():
        for batch in micro:
            for name, term in method.health(batch, clock).items():
                totals.setdefault(name, []).append(_pair(term.sum, term.count, fabric.device))
    if not totals:
        return {}
    found = torch.stack([torch.stack(pairs).sum(dim=0) for pairs in totals.values()])
    if fabric.world_size > 1:
        found = fabric.all_reduce(found, reduce_op="sum")  # type: ignore[assignment]
    return {name: (row[0], row[1]) for name, row in zip(totals, found.tolist(), strict=True)}


@contextmanager
def untouched(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """What is called within leaves no trace: buffers of modules in training mode and random states are put back."""
    training = [part for module in modules for part in module.modules() if part.training]
    buffers = [(buffer, buffer.clone()) for part in training for buffer in part.buffers(recurse=False)]
    state = rng.state(device)
    try:
        yield
    finally:
        rng.restore(state, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


# -- what judges a series ----------------------------------------------------------------------------------------------


def pooled(series: Series, last: int) -> float:
    """The number over the last measurements together: the sum of sums over the sum of counts."""
    return sum(s.total for s in series[-last:]) / sum(s.counted for s in series[-last:])


def middle(series: Series, last: int) -> float:
    """The median of the last measurements, which a single wild one does not move."""
    return statistics.median(s.value for s in series[-last:])


def highest(series: Series, width: int = 3) -> float:
    """The highest median of ``width`` measurements in a row."""
    return max(middle(series[: k + 1], width) for k in range(min(width, len(series)) - 1, len(series)))


def since(series: Series, bad: Callable[[float], bool]) -> int | None:
    """The step from which on every measurement is bad; None where the last is not."""
    steps: list[int] = []
    for seen in reversed(series):
        if not bad(seen.value):
            break
        steps.append(seen.step)
    return steps[-1] if steps else None


def swing(series: Series, last: int) -> tuple[float, float]:
    """By how much the last measurements go up and down, and how often they change sign.

    Returns:
        the median size of a step from one to the next; and the share of the steps that change the sign. Of independent
        numbers around 0 half do, of those on one side none, however much they scatter.
    """
    pairs = list(pairwise(s.value for s in series[-last:]))
    return statistics.median(abs(b - a) for a, b in pairs), sum(a * b < 0 for a, b in pairs) / len(pairs)


def _pair(total: Tensor, count: Tensor | int, device: torch.device) -> Tensor:
    return torch.stack([torch.as_tensor(v, device=device).detach().double() for v in (total, count)])
