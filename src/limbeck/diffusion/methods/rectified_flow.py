"""Rectified flow: straighter paths from the pairs of an earlier flow, which a single step then follows."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class RectifiedFlow(TrajectoryMethod):
    """Reflow and distillation (Liu et al., arXiv 2209.03003; InstaFlow, arXiv 2309.06380).

    The teacher's sampler couples noise with samples. A flow along the straight lines of these pairs has the same law
    at both ends and straighter paths than the teacher's; the last share of the training teaches its first step alone
    to go all the way. A velocity on a line is ``(z - D) / t`` with the network's D, so it has the pair's sample as D.
    The student samples by Euler's method (``rule: ode``).

    What differs: lines end at the student's highest level, a time a little under 1, exactly on the noise that the
    sampler starts from; the teacher stands for the first rectified flow.

    Args:
        coupling: the pairs of the ``teacher``'s sampler, or ``independent`` samples and noise, which is the first
            rectified flow.
        distil: share of the training, at its end, for the distillation of a single step.
        huber: c of the pseudo-Huber distance of that step, in units of ``sqrt(dimensions)``; by default the distance
            is the mean square.

    Raises:
        UserError: ``distil`` is no share.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        coupling: Literal["teacher", "independent"] = "teacher",
        distil: float = 0.5,
        huber: float | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 0 <= distil <= 1:
            raise UserError(f"rectified_flow: distil is a share of the training, from 0 to 1, not {distil}")
        self.coupling = coupling
        self.distil = distil
        self.huber = huber

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The velocity on the lines of pairs, and later the single step."""
        eps, label, x0 = self.couple(batch, clock)
        if clock.progress >= 1 - self.distil:
            start = torch.full_like(eps.flatten(1)[:, 0], self.sigma_max)
            return {"distillation": Term.of(self.apart(self.network(self.sigma_max * eps, start, label), x0))}
        u = clock.uniform(batch["id"], (1,), "time").squeeze(1).to(x0)
        x, sigma, t = self.on_pair(x0, eps, u)
        return {"velocity": Term.of(squared_error(self.network(x, sigma, label), x0) / t**2)}

    def couple(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None, Tensor]:
        """Noise, class and sample."""
        if self.coupling == "teacher":
            return self.pair(batch, clock)
        x0, label = self.clean(batch, clock, "data")
        return clock.normal(batch["id"], self.shape, "noise").to(x0), label, x0

    def on_pair(self, x0: Tensor, eps: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At shares [B] of the line ``z = (1 - t / T) x0 + t eps`` to its end T, in EDM space: x, level, time."""
        low, high = (level / (1 + level) for level in (self.sigma_min, self.sigma_max))
        t = low + (high - low) * u
        z = like(1 - t / high, x0) * x0 + like(t, x0) * eps
        return z / like(1 - t, x0), t / (1 - t), t
