"""Diversity back at hardly any cost: a distilled network whose first steps are the teacher's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from limbeck.diffusion.hybrid import Hybrid
from limbeck.diffusion.networks import inherit
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.errors import UserError
from limbeck.registry import Block, MethodBlock, build, register


@register("method")
class DiversityDistill(Method):
    """Distilling diversity (Gandikota and Bau, "Distilling Diversity and Control in Diffusion Models", 2503.10637).

    Distilled networks decide nearly all of a sample at their first step, and that is where their samples grow alike;
    the teacher decides little there. So the teacher takes the first step and the distilled network the rest: no
    training of its own, and as many calls as the teacher is given for it more. Here the network is distilled by any
    method, ``by``, which sees a plain generator of a few steps, and what is delivered is a ``hybrid`` that samples so.
    The metric ``variance_by_step`` shows when each network decides.

    What differs: the teacher goes in ``fine`` calls of DPM-Solver++(2M) to the distilled network's second level
    rather than in one call, because on points the first of a few steps spans most of the way.

    Args:
        by: the method that distils; by default ``dmd2``.
        first: transitions between the student's levels that the teacher takes when it samples.
        fine: calls of the teacher for these.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    same_view = False
    controls = {"distilled": {"method": {"name": "diversity_distill", "first": 0}}}

    def __init__(self, *, by: MethodBlock | None = None, first: int = 1, fine: int = 4) -> None:
        if first < 0 or fine < 1:
            raise UserError("diversity_distill: first must be 0 or more, and fine 1 or more")
        self.by = Block("dmd2") if by is None else by
        self.first = first
        self.fine = fine
        self.inner: Method = build("method", self.by)
        self.couples_samples = self.inner.couples_samples  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """Set the distilling method up around the student, whose base becomes the teacher's network.

        Raises:
            UserError: the student is no hybrid, or has no step left.
        """
        student = parts.student
        if not isinstance(student, Hybrid):
            raise UserError("diversity_distill samples with two networks: student: {name: hybrid, net: {}, base: {}}")
        if self.first >= len(student.levels):
            raise UserError(f"diversity_distill: first must leave one of the student's {len(student.levels)} steps")
        self.inner.setup(parts)
        self.learners, self.teachers, self.frozen = self.inner.learners, self.inner.teachers, self.inner.frozen
        inherit(student.base, self.teacher.module)
        student.first.fill_(self.first)
        student.fine.fill_(self.fine)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Those of the distilling method."""
        return self.inner.updates(batch, clock)

    def before_step(self, clock: Clock) -> Collection[str]:
        """That of the distilling method."""
        return self.inner.before_step(clock)

    def pace(self, clock: Clock) -> float:
        """That of the distilling method."""
        return self.inner.pace(clock)

    def after_step(self, clock: Clock) -> None:
        """That of the distilling method."""
        self.inner.after_step(clock)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Those of the distilling method."""
        return self.inner.count(batch)

    def state_dict(self) -> dict[str, Any]:
        """That of the distilling method."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.inner.load_state_dict(state)
