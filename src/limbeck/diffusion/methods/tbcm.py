"""TBCM: continuous-time consistency on every state of the teacher's own trajectories."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.methods.scm import SCM, WEIGHT
from limbeck.diffusion.paths import TrigFlow, from_denoised, like
from limbeck.diffusion.rollouts import visited
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


class Route(NamedTuple):
    """Points of the trigonometric path [N, *shape] on trajectories, their times [N], velocities, levels and class."""

    x: Tensor
    t: Tensor
    velocity: Tensor
    sigma: Tensor
    label: Tensor | None


@register("method")
class TBCM(SCM):
    """Trajectory-backward consistency models (arXiv 2511.20410): sCM without any data.

    The teacher goes down from pure noise once, in ``pair_steps`` steps of Euler on the circle, which are DDIM's, and
    every state that it visits, with the velocity that it had there, is a point to learn on: no data, and no further
    call of the teacher. The levels of a trajectory are drawn anew, one from each of as many equal parts of the grid, so
    that all levels are seen; the start itself, pure noise, is left out. A sample of the batch gives ``pair_steps``
    points, so batches are to be smaller than sCM's. Trajectories start from ``pairs`` draws of noise.

    What differs: levels are stratified over the Karras grid instead of a shifted rectified flow's; the strength of
    guidance is one for all; the tangent's warm-up has no way back.

    Args:
        points: states of the teacher's ``trajectory``, or as in sCM noised clean samples with the
            ``teacher``'s velocity or the ``data``'s.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, points: Literal["trajectory", "teacher", "data"] = "trajectory", **rest: Any) -> None:
        super().__init__(**rest)
        if self.pair_steps < 2:
            raise UserError("tbcm: a trajectory needs pair_steps of 2 or more")
        self.points = points  # type: ignore[assignment]  # one more than its base has

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance of F to itself moved against the tangent, at all states of a trajectory."""
        if self.points != "trajectory":
            return super().terms(batch, clock)
        x, t, velocity, sigma, label = self.route(batch, clock)
        moved = self.against_tangent(x, t, velocity, label, min(1.0, clock.progress / max(self.warmup, 1e-9)))
        errors = squared_error(self.field(x / self.sigma_data, t, label), moved)
        if self.learned_weight:
            weight = self.learners[WEIGHT](sigma)
            errors = weight.exp() * errors - weight
        return {"consistency": Term.of(errors.reshape(len(batch["id"]), -1))}

    @torch.no_grad()
    def route(self, batch: Batch, clock: Clock) -> Route:
        """The states of a trajectory for each sample, all trajectories' in one row after another."""
        which = (clock.uniform(batch["id"], (1,), "pair").squeeze(1) * self.pairs).long()
        start, label = self.pair_start(which, clock.seed)
        levels = self.route_levels(clock.uniform(batch["id"], (self.pair_steps,), "levels"))
        with self.teacher.context():
            path = visited(self.real, start * self.sigma_max, levels.unbind(dim=1), **conditioned(label))
        states, estimates = (part[:, 1:].flatten(0, 1) for part in path)
        sigma = levels[:, 1:].flatten()
        trig = TrigFlow(self.sigma_data)
        t = trig.time(sigma)
        x = states * like(torch.cos(t), states)
        repeated = None if label is None else label.repeat_interleave(self.pair_steps)
        return Route(x, t, from_denoised(trig, x, t, estimates, "v"), sigma, repeated)

    def route_levels(self, uniform: Tensor) -> Tensor:
        """Falling levels [B, K + 1] from uniform numbers [B, K]: the highest, then one from each part of the grid."""
        count = uniform.shape[1]
        parts = torch.arange(count - 1, -1, -1, dtype=uniform.dtype, device=uniform.device)
        place = torch.cat([torch.ones_like(uniform[:, :1]), (parts + uniform) / count], dim=1)
        return self.levels(place)
