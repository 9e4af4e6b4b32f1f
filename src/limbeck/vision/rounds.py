"""Learning in rounds: look at all samples, choose among them, train on, and so again.

A pool is the training data of a run, seen as a whole. What a method knows of its samples (who has a label, what weight)
it keeps in tables with a row for each, which a batch reads by its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.engine.devices import device_of, to_device
from limbeck.engine.method import Batch, Clock, Method, Parts
from limbeck.losses import IGNORE
from limbeck.models import places

ROWS = 256
"""Samples that are looked at at once."""


class Pool:
    """All samples of a training source, in rows 0 to N - 1 of ascending id.

    Attributes:
        ids, labels: int64 [N], on the CPU; label -100 where there is none.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        pieces = [source.batch(rows) for rows in torch.arange(len(source)).split(ROWS)]
        self.ids, self._places = torch.cat([piece["id"] for piece in pieces]).sort()
        labels = [piece.get("label", torch.full_like(piece["id"], IGNORE)) for piece in pieces]
        self.labels = torch.cat(labels)[self._places]
        self._sorted = self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of samples by their ids, int64 [B], on the device of ``ids``."""
        if self._sorted.device != ids.device:
            self._sorted = self._sorted.to(ids.device)  # moved once
        return torch.searchsorted(self._sorted, ids)

    def batch(self, rows: Tensor, device: torch.device, view: int = 0) -> Batch:
        """Samples by their rows (on the CPU), on a device."""
        moved: Batch = to_device(self.source.batch(self._places[rows], view), device)
        return moved

    def ask(self, module: nn.Module, give: Callable[[Batch], Tensor]) -> Tensor:
        """What ``give`` finds in every sample, [N, ...] on the CPU; ``module`` is in evaluation mode meanwhile."""
        device = device_of(module)
        with places.looking(module):
            found = [give(self.batch(rows, device)).cpu() for rows in torch.arange(len(self)).split(ROWS)]
        return torch.cat(found)


class Shelf:
    """A few samples of a pool that are at hand on the device, to be drawn beside every batch."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._held: Batch = {}
        self._view: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._held["id"]) if self._held else 0

    def holds(self, *, view: int, version: int) -> bool:
        """Whether what it holds is of this version and view, so that nothing need be read again."""
        return self._view == (view, version)

    def hold(
        self, rows: Tensor, device: torch.device, *, view: int, version: int, labels: Tensor | None = None
    ) -> None:
        """Hold these rows as they look in this view, unless it does.

        Args:
            rows: of the pool, on the CPU.
            device: where they are held.
            view: of their augmentation.
            version: of the choice of rows and of their labels.
            labels: of these rows, in place of the data's.
        """
        if not self.holds(view=view, version=version):
            self._held = self.pool.batch(rows, device, view)
            if labels is not None:
                self._held["label"] = labels.to(device)
            self._view = (view, version)

    def draw(self, ids: Tensor, clock: Clock, name: str = "shelf") -> Batch:
        """One held sample for each of ``ids``, with replacement: the same however the batch is cut."""
        place = (clock.uniform(ids, (), name) * len(self)).long().clamp_max(len(self) - 1)
        return {k: v[place] if isinstance(v, Tensor) else v for k, v in self._held.items()}


class Rounds(Method):
    """A student that learns in rounds, before each of which :meth:`choose` looks at the pool.

    Args:
        rounds: how many; they share the steps of the run evenly.
        restart: start every round with the student's first weights, a fresh optimizer and the learning rate's whole
            schedule; otherwise the student goes on.
    """

    def __init__(self, *, rounds: int = 8, restart: bool = True) -> None:
        self.rounds = rounds
        self.restart = restart
        self.begun = -1

    def setup(self, parts: Parts) -> None:
        """Take the first stream as the pool."""
        super().setup(parts)
        self.pool = Pool(next(iter(parts.streams.values())))

    def choose(self, number: int, clock: Clock) -> None:
        """Look at the pool before round ``number`` (from 0), and note in tables what follows from it."""
        raise NotImplementedError

    def round(self, clock: Clock) -> int:
        """Which round a step is in, from 0."""
        return clock.step * self.rounds // max(clock.total, 1)

    def before_step(self, clock: Clock) -> Collection[str]:
        """Begin a round where it is time."""
        number = self.round(clock)
        if number == self.begun:
            return ()
        self.choose(number, clock)
        self.begun = number
        return ("student",) if self.restart and number else ()

    def pace(self, clock: Clock) -> float:
        """The share of the round that is done, where every round starts anew."""
        return clock.progress * self.rounds % 1 if self.restart else clock.progress

    def device(self) -> torch.device:
        """Where the student is."""
        return device_of(self.student)

    def state_dict(self) -> dict[str, Any]:
        """Which round has begun; a method adds its tables."""
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.begun = state["begun"]


def pieces(count: int, size: int = 1024) -> Iterator[Tensor]:
    """Rows 0 to ``count`` - 1 in pieces, for distances that would not fit in memory at once."""
    yield from torch.arange(count).split(size)


def farthest(points: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Greedy k-centre: ``count`` rows, each the farthest from all that are chosen by then.

    Args:
        points: [N, D], compared by Euclidean distance.
        chosen: bool [N], those that are chosen at the start; where there is none the first is the farthest from the
            mean of all.
        count: how many more.

    Returns:
        rows in the order of their choice, int64 [count].
    """
    if chosen.any():
        near = torch.cat([torch.cdist(points[rows], points[chosen]).amin(1) for rows in pieces(len(points))])
    else:
        near = (points - points.mean(0)).norm(dim=1)
    taken = chosen.clone()
    picked: list[int] = []
    for _ in range(min(count, int((~chosen).sum()))):
        row = int(near.masked_fill(taken, -1.0).argmax())
        picked.append(row)
        own = (points - points[row]).norm(dim=1)
        near = own if not taken.any() else torch.minimum(near, own)
        taken[row] = True
    return torch.tensor(picked, dtype=torch.int64)
