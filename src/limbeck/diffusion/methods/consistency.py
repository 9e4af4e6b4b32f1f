"""Consistency models: a network that gives the end of the trajectory from any point on it."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import SolverMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class Consistency(SolverMethod):
    """Consistency distillation and training (Song et al., arXiv 2303.01469, algorithms 2 and 3).

    The network's answers at two neighbouring levels of one trajectory must be the same, ``f(x', s') = f(x, s)``, and
    at ``sigma_min`` it is the identity. The lower point comes from a step of the teacher's solver, or (``points:
    data``) from the same clean sample and noise, without a teacher's trajectory. LPIPS is for photographs: the
    distance here is the mean square, or a pseudo-Huber one.

    Args:
        points: where the lower point comes from.
        levels: of the grid that pairs are neighbours on; 18 in the paper for 32 x 32 pixels.
        first_levels: levels that the training begins with, rising to ``levels`` as ``N(k)`` of the paper's appendix C
            does; 0 keeps ``levels`` all along. With it a ``momentum`` rises likewise, ``mu(k)``.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        points: Literal["teacher", "data"] = "teacher",
        levels: int = 18,
        first_levels: int = 0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if levels < 2 or first_levels == 1 or not 0 <= first_levels <= levels:
            raise UserError("consistency: levels must be 2 or more, and first_levels 0 or from 2 to levels")
        self.points = points
        self.level_count = levels
        self.first_levels = first_levels

    def setup(self, parts: Parts) -> None:
        """The student's network must be the identity at ``sigma_min``."""
        super().setup(parts)
        self.need_floor(parts, self.sigma_min)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance between the answers at two neighbouring levels."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "noise")
        higher, lower = self.neighbours(clock.uniform(batch["id"], (1,), "level").squeeze(1), clock)
        x = x0 + like(higher, x0) * eps
        below = self.solved(x, higher, lower, label) if self.points == "teacher" else x0 + like(lower, x0) * eps
        target = self.lagging(below, lower, label)
        return {"consistency": Term.of(self.apart(self.network(x, higher, label), target))}

    def neighbours(self, u: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
        """A level and the one below it, from uniform numbers, on the grid that is due."""
        count = self.due(clock) - 1
        lower = (u * count).floor()
        return self.levels((lower + 1) / count), self.levels(lower / count)

    def due(self, clock: Clock) -> int:
        """N(k), the levels of the grid at this step."""
        if not self.first_levels:
            return self.level_count
        low, high = self.first_levels**2, (self.level_count + 1) ** 2
        return min(math.ceil(math.sqrt(clock.progress * (high - low) + low) - 1) + 1, self.level_count)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the slow copy, by the paper's ``mu(k) = exp(s0 log mu0 / N(k))`` where the grid grows."""
        if self.slow is not None:
            growing = self.first_levels * math.log(self.momentum) / self.due(clock) if self.first_levels else 0.0
            self.slow.follow(math.exp(growing) if self.first_levels else self.momentum)
