"""Flow maps: jumps between any two times, by what characterises them along their end, their start or their middle."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.flows import FlowMethod, flow_step, mean_velocity_target, need_jumps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.steps import tangent
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.registry import register


@register("method")
class FlowMaps(FlowMethod):
    """Flow map distillation and self-distillation (Boffi et al., arXiv 2406.07507 and 2505.18825).

    The map ``X(z, t, r) = z - (t - r) u(z, t, r)`` of a rectified flow is learnt by one of three equations: the
    Lagrangian ``dX/dr = v(X, r)`` at its end, the Eulerian ``dX/dt + v dX/dz = 0`` at its start (the identity of mean
    flows), or the semigroup ``X(., s, r) o X(., t, s) = X(., t, r)`` with a time s between. The velocity v is the
    teacher's, or, with ``points: data``, the network's own ``u(z, r, r)``, which learns from the data beside it. The
    student takes two levels (``net: {jumps: true}``, ``rule: map``).

    What differs from the papers: every equation is solved for u and one side of it is a target without gradient, so
    that all three losses are in the unit of a velocity and no second derivatives are taken.

    Args:
        kind: which equation.
        diagonal: weight of the flow matching of ``u(z, t, t)``.
        mean: of the logit of the times.
        std: standard deviation of that logit.
        momentum: of the slow copy that gives targets; 0 takes the network itself, without gradient.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    fixed = ("momentum",)
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        kind: Literal["lagrangian", "eulerian", "semigroup"] = "lagrangian",
        diagonal: float = 1.0,
        mean: float = 0.0,
        std: float = 1.5,
        momentum: float = 0.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.kind = kind
        self.diagonal = diagonal
        self.mean = mean
        self.std = std
        self.momentum = momentum

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels."""
        super().setup(parts)
        need_jumps(parts)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """What the map misses of its equation, and the velocity of what it starts from."""
        logits = self.mean + self.std * clock.normal(batch["id"], (2,), "times")
        times = self.within_range(torch.sigmoid(logits))
        t, r = times.max(dim=1).values, times.min(dim=1).values
        z, velocity, label = self.on_line(batch, clock, t)
        between = clock.uniform(batch["id"], (1,), "between").squeeze(1)
        answer = self.average(z, t, r, label)
        target = self.target(z, velocity, t, r, r + between * (t - r), label)
        terms: dict[str, Term] = {self.kind: Term.of(squared_error(answer, target))}
        if self.diagonal:
            flow = squared_error(self.average(z, t, t, label), velocity)
            terms["velocity"] = Term.of(flow, weight=self.diagonal)
        return terms

    def target(self, z: Tensor, velocity: Tensor, t: Tensor, r: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """What the mean velocity has to be by the equation, without gradient."""
        if self.kind == "semigroup":
            return self.composed(z, t, r, s, label)
        # Of the network itself without gradient, or of its slow copy.
        still = torch.zeros_like(t)
        if self.kind == "eulerian":
            own = velocity if self.points == "teacher" else self.average(z, t, t, label, lagging=True)
            points, along = (z, t, r), (own, torch.ones_like(t), still)
            _, change = tangent(lambda z, t, r: self.average(z, t, r, label, lagging=True), points, along)
            return mean_velocity_target(own, change, t, r)
        points, along = (z, t, r), (torch.zeros_like(z), still, torch.ones_like(r))
        u, change = tangent(lambda z, t, r: self.average(z, t, r, label, lagging=True), points, along)
        # dX/dr = u - (t - r) du/dr has to be v(X, r).
        arrived = flow_step(z, u, t, r)
        there = (
            self.velocity(arrived, r, label)
            if self.points == "teacher"
            else self.average(arrived, r, r, label, lagging=True)
        )
        return mean_velocity_target(there, -change, t, r)

    def composed(self, z: Tensor, t: Tensor, r: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """The mean velocity of a jump to ``s`` and another from there."""
        share = ((t - s) / (t - r).clamp_min(1e-6)).reshape(-1, *[1] * (z.dim() - 1))
        first = self.average(z, t, s, label, lagging=True)
        second = self.average(flow_step(z, first, t, s), s, r, label, lagging=True)
        return share * first + (1 - share) * second
