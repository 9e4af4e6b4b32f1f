"""Segments of a trajectory: equal parts of a grid of noise levels, each with a consistency function of its own.

A grid of ``steps`` has the places 0 (the lowest level) to ``steps`` (the highest). A segment has the places above its
start, up to and with the next segment's start.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import jump
from limbeck.diffusion.trajectories import SolverMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError


class Places(NamedTuple):
    """Of a pair and where it has to arrive, float [B]: ``now > then >= end``, all in one segment or at its start."""

    now: Tensor
    then: Tensor
    end: Tensor


def places_in_segments(uniform: Tensor, steps: int, segments: int, skip: int, *, any_end: bool = False) -> Places:
    """Places from uniform numbers [B, 1]: any above 0, one ``skip`` below it, and where the segment starts.

    Where the segment starts sooner, the second place is there.

    Args:
        uniform: numbers in [0, 1); a second column for ``any_end``.
        steps: of the grid, a multiple of the segments.
        segments: how many.
        skip: places between the two of a pair.
        any_end: whether the end is any place from the segment's start to the second place.
    """
    length = steps // segments
    now = (uniform[:, 0] * steps).floor() + 1
    start = ((now - 1) / length).floor() * length
    then = torch.maximum(now - skip, start)
    end = start + (uniform[:, 1] * (then - start + 1)).floor() if any_end else start
    return Places(now, then, end)


def stage_of(progress: float, stages: int) -> tuple[int, float]:
    """Which of so many equal stages it is at a share of the training in [0, 1), and the share of the stage."""
    place = progress * stages
    stage = min(int(place), stages - 1)
    return stage, min(place - stage, 1.0)


class SegmentedMethod(SolverMethod):
    """Base of the methods of stages, each with fewer segments than the one before.

    From two neighbouring levels of a segment the network must arrive at the same place: the segment's start, by a step
    of DDIM, or for a network that takes two levels (``net: {jumps: true}``, ``rule: map``) any level down to the start.
    Stages share the training equally, and the learning rate anneals in each.

    Args:
        segments: of each stage, falling; the last as many as the student has steps, unless its network jumps.
        levels: grid steps of the whole trajectory, shared equally by the segments.
        skip: grid steps between the two levels of a pair, within a segment.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True

    def __init__(
        self, *, segments: tuple[int, ...] = (8, 4, 2, 1), levels: int = 48, skip: int = 1, **rest: Any
    ) -> None:
        super().__init__(**rest)
        if not segments or min(segments) < 1 or list(segments) != sorted(segments, reverse=True):
            raise UserError(f"segments must be falling numbers of 1 or more, not {list(segments)}")
        if levels < 1 or skip < 1 or any(levels % count for count in segments):
            raise UserError("every number of segments must divide levels, and skip be 1 or more")
        self.segments = tuple(segments)
        self.level_count = levels
        self.skip = skip

    def setup(self, parts: Parts) -> None:
        """Take the student.

        Raises:
            UserError: its steps are not those of the last stage.
        """
        super().setup(parts)
        self.need_floor(parts, 0.0)  # the end of the lowest segment
        student: Any = parts.student
        last = self.segments[-1]
        self.any_end = student.rule == "map"
        if not self.any_end and (student.nfe != last or (student.nfe > 1 and student.rule != "ode")):
            raise UserError(
                f"the last stage has {last} segments: student: {{nfe: {last}, rule: ode}}, or a network with "
                "jumps: true and rule: map"
            )

    def stage(self, clock: Clock) -> tuple[int, float]:
        """Which stage it is, and the share of it that is done."""
        return stage_of(clock.progress, len(self.segments))

    def pace(self, clock: Clock) -> float:
        """Each stage anneals the learning rate anew."""
        return min(self.stage(clock)[1], 1 - 1e-6)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance between where two neighbours of a segment arrive."""
        now, then, end = self.pair_levels(clock.uniform(batch["id"], (2,), "level"), self.stage(clock)[0])
        x, label = self.points_at(now, batch, clock)
        below = self.solved(x, now, then, label)
        to = {"to": end} if self.any_end else {}
        target = jump(below, self.lagging(below, then, label, **to), then, end)
        return {"consistency": Term.of(self.apart(jump(x, self.network(x, now, label, **to), now, end), target))}

    def points_at(self, level: Tensor, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None]:
        """Noised clean samples at levels [B], and their class."""
        x0, label = self.clean(batch, clock, "data")
        return x0 + like(level, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0), label

    def pair_levels(self, uniform: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two levels of a stage's segment and where they arrive, from uniform numbers [B, 2]; the lowest end is 0."""
        count = self.level_count
        places = places_in_segments(uniform, count, self.segments[stage], self.skip, any_end=self.any_end)
        now, then, end = (self.levels(place / count) for place in places)
        return now, then, torch.where(places.end == 0, torch.zeros_like(end), end)
