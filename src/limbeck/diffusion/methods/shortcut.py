"""Shortcut models: a flow whose network also knows steps of twice, four times and up to all of the way."""

from __future__ import annotations

from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.flows import FlowMethod, flow_step, need_jumps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


class Steps(NamedTuple):
    """Times [B] that a step starts, halves and ends at, whether it is one at all, and whether its halves are."""

    t: Tensor
    half: Tensor
    r: Tensor
    long: Tensor
    halves: Tensor


@register("method")
class Shortcut(FlowMethod):
    """Shortcut models (Frans et al., arXiv 2410.12557), trained or distilled.

    Most samples learn the velocity, a step of no size; the others that a step of size 2d is two steps of size d by the
    slow copy of the network (equation 5), with dyadic sizes from the finest of a mesh, whose halves are velocities, to
    the whole way. The student takes two levels (``net: {jumps: true}``, ``rule: map``). ``points: teacher`` takes the
    velocity from the teacher instead of from single samples.

    What differs: the way is from the student's highest level, which is a time a little under 1; a sample is of one
    kind or the other by chance, not by its place in the batch; and guidance is the teacher's.

    Args:
        consistency: share of the samples that learn long steps.
        mesh: how many of the finest steps make the whole way, a power of 2.
        momentum: of the slow copy that gives targets; 0 takes the network itself, without gradient.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    fixed = ("momentum",)
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, consistency: float = 0.25, mesh: int = 128, momentum: float = 0.999, **rest: Any) -> None:
        super().__init__(**rest)
        if mesh < 2 or mesh & (mesh - 1):
            raise UserError(f"shortcut: mesh must be a power of 2, not {mesh}")
        self.consistency = consistency
        self.mesh = mesh
        self.momentum = momentum

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels."""
        super().setup(parts)
        need_jumps(parts)
        self.start = self.sigma_max / (1 + self.sigma_max)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance to the velocity, or to what two halves of a step make."""
        at = self.steps(clock.uniform(batch["id"], (3,), "steps"))
        z, velocity, label = self.on_line(batch, clock, at.t)
        target = torch.where(like(at.long.to(z), z) > 0, self.two_halves(z, at, label), velocity)
        return {"shortcut": Term.of(squared_error(self.average(z, at.t, at.r, label), target))}

    def steps(self, uniform: Tensor) -> Steps:
        """Steps from uniform numbers [B, 3]."""
        kind, size, place = uniform.unbind(dim=1)
        long = kind < self.consistency
        width = torch.exp2(-(size * int(log2(self.mesh))).floor())  # of 1, 1/2, to 2 / mesh
        width = torch.where(long, width, torch.full_like(width, 1 / self.mesh))
        t = self.start * width * ((place / width).floor() + 1)
        width = self.start * width
        r = torch.where(long, (t - width).clamp_min(0), t)
        return Steps(t, t - width / 2, r, long, width > 2.5 * self.start / self.mesh)

    def two_halves(self, z: Tensor, at: Steps, label: Tensor | None) -> Tensor:
        """The mean of the velocities of two half steps, without gradient."""
        first = self.average(z, at.t, torch.where(at.halves, at.half, at.t), label, lagging=True)
        middle = flow_step(z, first, at.t, at.half)
        second = self.average(middle, at.half, torch.where(at.halves, at.r, at.half), label, lagging=True)
        return (first + second) / 2
