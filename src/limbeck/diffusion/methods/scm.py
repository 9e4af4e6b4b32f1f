"""sCM: consistency models in continuous time, on the trigonometric path."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.flows import FlowMethod, LevelWeight, normalised, trig_field, trig_tangent
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import TrigFlow, like
from limbeck.diffusion.steps import tangent
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.registry import register

WEIGHT = "loss_weight"
"""The role of the learned weight."""


@register("method")
class SCM(FlowMethod):
    """Continuous-time consistency, sCD and sCT (Lu and Song, arXiv 2410.11081, algorithm 1).

    In the limit of neighbouring levels, a consistency function ``f = cos t x - sigma_data sin t F`` has to have no
    derivative along the flow. The network's answer F is drawn by one step against that derivative, the tangent, which
    is found by forward-mode differentiation, warmed up and normalised. The factor ``1 / (sigma_data tan t)`` of the
    paper's loss is already in the tangent. A learned weight evens out the noise levels.

    What differs: the network keeps its embedding of the level (the paper has positional ones and an adaptive double
    normalisation), so choose a smooth activation; levels are cut to the range of the student's grid.

    Args:
        mean: of the logarithm of the noise levels.
        std: standard deviation of that logarithm.
        warmup: share of the training over which the unsteady part of the tangent comes in; 10 thousand iterations
            in the paper.
        tangent_floor: c in ``g / (|g| + c)``.
        learned_weight: whether levels are weighed by a network that learns beside the student.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        mean: float = -1.0,
        std: float = 1.4,
        warmup: float = 0.1,
        tangent_floor: float = 0.1,
        learned_weight: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.mean = mean
        self.std = std
        self.warmup = warmup
        self.tangent_floor = tangent_floor
        self.learned_weight = learned_weight

    def setup(self, parts: Parts) -> None:
        """Take the student, the identity at level 0 as TrigFlow's consistency functions are, and build the weight."""
        super().setup(parts)
        self.need_floor(parts, 0.0)
        self.sigma_data = float(getattr(parts.student.net, "sigma_data", 0.5))
        if self.learned_weight:
            self.learners[WEIGHT] = LevelWeight()

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the student and of the weight of its levels."""
        yield Update(("student", WEIGHT) if self.learned_weight else "student", partial(self.terms, batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance of F to itself moved against the tangent."""
        z = clock.normal(batch["id"], (1,), "level").squeeze(1)
        sigma = log_normal(z, self.mean, self.std).clamp(self.sigma_min, self.sigma_max)
        x, t, velocity, label = self.drawn(batch, clock, sigma)
        answer = self.field(x / self.sigma_data, t, label)
        moved = self.against_tangent(x, t, velocity, label, min(1.0, clock.progress / max(self.warmup, 1e-9)))
        errors = squared_error(answer, moved)
        if not self.learned_weight:
            return {"consistency": Term.of(errors)}
        weight = self.learners[WEIGHT](sigma)
        return {"consistency": Term.of(weight.exp() * errors - weight)}

    def drawn(self, batch: Batch, clock: Clock, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Points of the path, their times and velocities, and their class."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "noise").to(x0)
        path = TrigFlow(self.sigma_data)
        t = path.time(sigma)
        x = path.noisy(x0, eps, t)
        if self.points == "data":
            return x, t, like(torch.cos(t), x) * self.sigma_data * eps - like(torch.sin(t), x) * x0, label
        teacher = trig_field(lambda x, sigma: self.denoised(x, sigma, label), x / self.sigma_data, t, self.sigma_data)
        return x, t, self.sigma_data * teacher, label

    def field(self, scaled: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """The student's F."""
        return trig_field(lambda x, sigma: self.network(x, sigma, label), scaled, t, self.sigma_data)

    def against_tangent(self, x: Tensor, t: Tensor, velocity: Tensor, label: Tensor | None, warm: float) -> Tensor:
        """``sg[F + g]``, g the normalised tangent."""
        both = torch.cos(t) * torch.sin(t)
        points = x / self.sigma_data, t
        value, change = tangent(
            lambda scaled, t: self.field(scaled, t, label), points, (like(both, x) * velocity / self.sigma_data, both)
        )
        g = trig_tangent(x, t, velocity, value, change, self.sigma_data, warm)
        return value + normalised(g, self.tangent_floor)
