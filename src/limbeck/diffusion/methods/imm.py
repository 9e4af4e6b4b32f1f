"""IMM: a map between noise levels whose law at the end must not depend on where it started."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.base import conditioned
from limbeck.diffusion.flows import need_jumps
from limbeck.diffusion.kernels import KernelName, group_mmd
from limbeck.diffusion.paths import like, precondition
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


class Levels(NamedTuple):
    """Levels ``t > r >= s``, each [B] and the same in a group."""

    t: Tensor
    r: Tensor
    s: Tensor


@register("method")
class IMM(TrajectoryMethod):
    """Inductive moment matching (Zhou et al., arXiv 2503.07565, algorithm 1).

    The network jumps from level t to s, in the form of DDIM. Samples at t and at a level r a little below it, of the
    same clean sample and noise, are carried to s, and the laws of the two ends must agree: by the maximum mean
    discrepancy of a group of particles that share their levels. Where r is s nothing is carried, and so the laws at all
    levels follow, by induction, from that of the data. A single particle makes it consistency training.

    The student takes two levels (``net: {jumps: true}``, ``rule: map``). Times and their weight are those of the
    straight path: t and s are uniform there, and the weight is ``sigmoid(b - log SNR) (-d log SNR / dt) / 2 alpha^a /
    (alpha^2 + sigma^2)`` (equation 13). The step from t to r is constant in the level (section 5 of its appendix C).

    What differs: particles of unlike classes are not compared; and ``points: teacher``, which is not in the paper,
    takes the lower point from a step of the teacher's solver.

    Args:
        particles: in a group.
        halvings: k of ``r = max(s, t - (sigma_max - sigma_min) / 2^k)``; 12 to 15 in the paper, for as many more
            iterations.
        kernel: the paper's is ``laplace``; its width is the distance that the network's output of unit size makes.
        power: a of the weight, 1 or 2 in the paper; 1 keeps the highest levels, which a single step needs.
        offset: b of the weight.
        points: where the point at r comes from: the ``data``'s own noise, or a step of the ``teacher``'s solver.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    couples_samples = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        particles: int = 4,
        halvings: int = 5,
        kernel: KernelName = "laplace",
        power: float = 1.0,
        offset: float = 5.0,
        points: Literal["data", "teacher"] = "data",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if particles < 1 or halvings < 1:
            raise UserError("imm: particles and halvings must be 1 or more")
        self.particles = particles
        self.halvings = halvings
        self.kernel: KernelName = kernel
        self.power = power
        self.offset = offset
        self.points = points

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels."""
        super().setup(parts)
        need_jumps(parts)
        self.sigma_data = float(getattr(parts.student.net, "sigma_data", 0.5))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted discrepancy of the ends, over groups of the global batch."""
        rows = Together(len(batch["id"]), batch["id"].device)
        place = torch.arange(*rows.bounds, device=batch["id"].device)
        at = self.drawn(clock.uniform(place // self.particles, (2,), "levels"))
        x0, label = self.clean(batch, clock, "data")
        x = x0 + like(at.t, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        moved = self.carried(self.network, x, at.t, at.s, label)
        target = self.carried(self.lagging, self.lower(x, x0, at, label), at.r, at.s, label)
        everybody = None if label is None else rows.all(label)
        ends, targets, scale = (rows.all(v) for v in (moved, target, self.scale(at)))
        apart = group_mmd(ends, targets, scale, self.particles, everybody, kind=self.kernel)
        return {"moments": Term.of(self.weight(at.t) * rows.own(apart))}

    def drawn(self, uniform: Tensor) -> Levels:
        """Levels from uniform numbers [B, 2]: t and s uniform in the time of the straight path."""
        low, high = (level / (1 + level) for level in (self.sigma_min, self.sigma_max))
        time = low + uniform[:, 0] * (high - low)
        end = uniform[:, 1] * time
        t, s = time / (1 - time), end / (1 - end)
        gap = (self.sigma_max - self.sigma_min) / 2**self.halvings
        return Levels(t, torch.maximum(t - gap, s.clamp_min(1e-6)), s)

    def carried(self, call: Any, x: Tensor, now: Tensor, then: Tensor, label: Tensor | None) -> Tensor:
        """Where the map takes points from a level to a lower one."""
        return steps.jump(x, call(x, now, label, to=then), now, then)

    @torch.no_grad()
    def lower(self, x: Tensor, x0: Tensor, at: Levels, label: Tensor | None) -> Tensor:
        """The points at level r."""
        if self.points == "data":
            return steps.jump(x, x0, at.t, at.r)
        with self.teacher.context():
            return steps.step(self.real, x, at.t, at.r, order="heun", **conditioned(label))

    def scale(self, at: Levels) -> Tensor:
        """One over what an output of unit size of the network moves the end by, [B]."""
        unit = precondition(at.t, self.sigma_data).c_out
        return 1 / (unit * (1 - at.s / at.t).clamp_min(1e-4))

    def weight(self, sigma: Tensor) -> Tensor:
        """Of the levels t, [B]."""
        t = sigma / (1 + sigma)
        log_snr = -2 * torch.log(sigma)
        slope = 2 / (t * (1 - t))
        return torch.sigmoid(self.offset - log_snr) * slope / 2 * (1 - t) ** self.power / ((1 - t) ** 2 + t**2)
