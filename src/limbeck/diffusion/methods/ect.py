"""ECT: consistency models by tuning a diffusion model, with levels that come closer and closer."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import adaptive, squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class ECT(TrajectoryMethod):
    """Easy consistency tuning (Geng et al., arXiv 2406.14548).

    Two points of one clean sample and one noise, at levels t and r, must have the same answer. With ``r = 0``, where
    the network is the identity, this is denoising, so that training starts from the diffusion model; then r moves
    towards t in stages: ``r / t = 1 - n(t) / base^a`` at stage a, with ``n(t) = 1 + k sigmoid(-b t)``. The loss is
    weighed by ``1 / (t - r)`` and ``1 / sqrt(|d|^2 + c^2)``.

    Args:
        stages: how many, of equal length; 1 is denoising all along.
        first_stage: the stage to begin with.
        base: q, by which the gap falls in each stage.
        spread: k of ``n(t)``.
        bend: b of ``n(t)``.
        c: of the adaptive weight, in units of ``sqrt(dimensions)``.
        mean: of the logarithm of the levels t.
        std: standard deviation of that logarithm.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        stages: int = 8,
        first_stage: int = 0,
        base: float = 2.0,
        spread: float = 8.0,
        bend: float = 1.0,
        c: float = 0.00054,
        mean: float = -1.1,
        std: float = 2.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 0 <= first_stage < stages:
            raise UserError("ect: first_stage must be at least 0 and under stages")
        self.stages = stages
        self.first_stage = first_stage
        self.base = base
        self.spread = spread
        self.bend = bend
        self.c = c
        self.mean = mean
        self.std = std

    def setup(self, parts: Parts) -> None:
        """The student's network must be the identity at level 0, since the lower point may be the clean sample."""
        super().setup(parts)
        self.need_floor(parts, 0.0)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted distance between the answers at two levels."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "noise").to(x0)
        z = clock.normal(batch["id"], (1,), "level").squeeze(1).to(x0)
        t = log_normal(z, self.mean, self.std).clamp(self.sigma_min, self.sigma_max)
        r = self.lower(t, clock)
        target = self.answer(x0 + like(r, x0) * eps, r, label)
        errors = squared_error(self.network(x0 + like(t, x0) * eps, t, label), target)
        dimensions = prod(self.shape)
        weighed = adaptive(errors, dimensions, 0.5, self.c**2 * dimensions)
        return {"consistency": Term.of(weighed / (t - r))}

    def stage(self, clock: Clock) -> int:
        """Which stage it is."""
        return self.first_stage + int(clock.progress * (self.stages - self.first_stage))

    def lower(self, t: Tensor, clock: Clock) -> Tensor:
        """The level r of a pair, 0 where the gap is all of t."""
        gap = (1 + self.spread * torch.sigmoid(-self.bend * t)) / self.base ** self.stage(clock)
        return t * (1 - gap).clamp_min(0)

    def answer(self, x: Tensor, r: Tensor, label: Tensor | None) -> Tensor:
        """The network's without gradient, and ``x`` itself at level 0."""
        found = self.lagging(x, torch.where(r > 0, r, torch.full_like(r, self.sigma_min)), label)
        return torch.where(like((r > 0).to(x), x) > 0, found, x)
