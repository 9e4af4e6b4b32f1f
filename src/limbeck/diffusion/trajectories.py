"""What methods share that teach a network where the teacher's trajectories lead: consistency functions and flow maps.

The student is a ``few_step`` generator; its network is called through it (``at=``). Targets are made without gradient:
by the teacher's solver, by the network itself, or by a slow copy of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.base import Pairs, conditioned
from limbeck.diffusion.losses import pseudo_huber, squared_error
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.momentum import MovingAverage
from limbeck.errors import UserError

NEAR = 0.01
"""Two levels that differ by less than this share are the same but for rounding."""


class TrajectoryMethod(Pairs):
    """Base of the methods that learn a function along the teacher's flow. A subclass gives :meth:`terms`."""

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    momentum: float = 0.0
    """Of the slow copy that gives targets, for a subclass with such an argument; 0 takes the network itself."""
    huber: float | None = None
    """c of the pseudo-Huber distance, likewise; None is the mean square."""

    def setup(self, parts: Parts) -> None:
        """Take the student, and a slow copy of it if there is a momentum.

        Raises:
            UserError: the student is no ``few_step`` generator, or the momentum is out of range.
        """
        super().setup(parts)
        if not hasattr(parts.student, "net"):
            raise UserError("this method trains the network of a generator: student: {name: few_step, net: {...}}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be at least 0 and under 1, not {self.momentum}")
        self.slow: MovingAverage | None = MovingAverage(parts.student) if self.momentum > 0 else None
        if self.slow is not None:
            self.frozen["target"] = self.slow

    def need_floor(self, parts: Parts, level: float) -> None:
        """For functions that are the identity at a level by construction; it may be rounded.

        Raises:
            UserError: the student's network is so at another level.
        """
        floor = getattr(parts.student.net, "floor", 0.0)
        if not math.isclose(floor, level, rel_tol=NEAR):
            raise UserError(
                f"this method's function is the identity at level {level:g}: give the student's net "
                f"floor: {level:g}, not {floor}"
            )

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the student."""
        yield Update("student", partial(self.terms, batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The student's loss terms."""
        raise NotImplementedError

    def network(self, x: Tensor, sigma: Tensor, label: Tensor | None, **given: Tensor) -> Tensor:
        """The student's network at levels [B], through the module as the loop wrapped it."""
        return self.student(x, label, at=sigma, **given)

    @torch.no_grad()
    def lagging(self, x: Tensor, sigma: Tensor, label: Tensor | None, **given: Tensor) -> Tensor:
        """What gives targets: the slow copy of the network, or the network itself, without gradient."""
        module = self.student if self.slow is None else self.slow
        return module(x, label, at=sigma, **given)

    @torch.no_grad()
    def denoised(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The teacher's estimate, guided as the recipe says."""
        with self.teacher.context():
            return self.real(x, sigma, **conditioned(label))

    def apart(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The distance [B] that the recipe names."""
        return squared_error(prediction, target) if self.huber is None else pseudo_huber(prediction, target, self.huber)

    def after_step(self, clock: Clock) -> None:
        """Move the slow copy."""
        if self.slow is not None:
            self.slow.follow(self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The slow copy."""
        return {} if self.slow is None else {"target": self.slow.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        if self.slow is not None:
            self.slow.load_state_dict(state["target"])


class SolverMethod(TrajectoryMethod):
    """Base of those whose targets come from a step of the teacher's solver.

    Args:
        momentum: of the slow copy that gives targets; 0 takes the network itself, without gradient.
        order: of the teacher's solver: ``euler`` is DDIM, ``heun`` EDM's.
        solver_steps: steps of the solver between two levels.
        huber: c of the pseudo-Huber distance, in units of ``sqrt(dimensions)`` (0.00054 in arXiv 2310.14189); by
            default the distance is the mean square.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    fixed = ("momentum",)

    def __init__(
        self,
        *,
        momentum: float = 0.0,
        order: Literal["euler", "heun"] = "heun",
        solver_steps: int = 1,
        huber: float | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if solver_steps < 1:
            raise UserError(f"solver_steps must be 1 or more, not {solver_steps}")
        self.momentum = momentum
        self.order: steps.Order = order
        self.solver_steps = solver_steps
        self.huber = huber

    @torch.no_grad()
    def solved(self, x: Tensor, now: Tensor, then: Tensor, label: Tensor | None) -> Tensor:
        """Where the teacher's solver arrives from level ``now`` at ``then``."""
        with self.teacher.context():
            return steps.solve(self.real, x, now, then, steps=self.solver_steps, order=self.order, **conditioned(label))
