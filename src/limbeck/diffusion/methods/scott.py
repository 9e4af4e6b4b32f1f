"""SCott: consistency distillation whose targets come from a stochastic solver, with a discriminator on the samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.adversarial import AdversarialMethod
from limbeck.diffusion.base import conditioned
from limbeck.diffusion.gan import HEAD, real_is_real
from limbeck.diffusion.levels import karras
from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import stochastic_step
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SCott(AdversarialMethod, TrajectoryMethod):
    """Stochastic consistency distillation (Liu et al., arXiv 2403.01505).

    As consistency distillation, but the lower point of a pair is found by a few steps of a *stochastic* solver with
    fresh noise. The answer that fits is then the mean of where the reverse diffusion ends: between the end of the
    deterministic flow, for ``strength`` 0, and the denoiser itself, for 1. Such a mean is blurred at high levels, so a
    discriminator at noised samples of the few-step generator sharpens it, and several steps with fresh noise between
    are better than one.

    What differs: the distance is the mean square or a pseudo-Huber one, where the paper compares Gaussians whose
    variance may be learnt; the discriminator reads the features of a fake score that learns beside it and not of a
    teacher with adapters; its weight is fixed.

    Args:
        levels: of the grid that pairs are neighbours on.
        strength: share of the reverse diffusion's noise, in [0, 1].
        solver_steps: steps of the solver between two levels.
        momentum: of the slow copy that gives targets; 0 takes the network itself, without gradient.
        huber: c of the pseudo-Huber distance, in units of ``sqrt(dimensions)``; by default the mean square.
        gan_weight: of the generator's adversarial loss.
        discriminator_weight: of the discriminator's loss; 0 (with ``gan_weight: 0``) has no fake score either.
        t_min: lowest position on the noise grid at which the generator's samples are to pass for real.
        t_max: highest position on the noise grid at which the generator's samples are to pass for real.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    fixed = ("momentum",)
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        levels: int = 18,
        strength: float = 0.5,
        solver_steps: int = 2,
        momentum: float = 0.0,
        huber: float | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if levels < 2 or solver_steps < 1:
            raise UserError("scott: levels must be 2 or more, and solver_steps 1 or more")
        if not 0 <= strength <= 1:
            raise UserError(f"scott: strength must be in [0, 1], not {strength}")
        self.level_count = levels
        self.strength = strength
        self.solver_steps = solver_steps
        self.momentum = momentum
        self.huber = huber

    def setup(self, parts: Parts) -> None:
        """Take the student, the identity at its lowest level, and build a discriminator if it has a weight."""
        super().setup(parts)
        self.floor = float(getattr(parts.student, "sigma_min", self.sigma_min))
        self.need_floor(parts, self.floor)

    @property
    def has_critic(self) -> bool:
        """With a discriminator, which reads its features."""
        return self.discriminator_weight > 0

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The student, then the discriminator."""
        yield Update("student", partial(self.terms, batch, clock))
        for k in range(self.critic_updates if self.has_critic else 0):
            yield self.critic_update(batch, clock, f"critic {k}")

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance between the answers at two neighbouring levels, and fooling the discriminator."""
        x0, label = self.clean(batch, clock, "data")
        count = self.level_count - 1
        place = (clock.uniform(batch["id"], (1,), "level").squeeze(1) * count).floor()
        higher, lower = (karras((place + k) / count, self.floor, self.sigma_max, self.rho) for k in (1, 0))
        x = x0 + like(higher, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        below = self.stochastic(x, higher, lower, label, batch, clock)
        error = self.apart(self.network(x, higher, label), self.lagging(below, lower, label))
        terms = {"consistency": Term.of(error)}
        if HEAD in self.learners and self.gan_weight:
            terms["adversarial"] = self.fooling(*self.generate(batch, clock, "generator"), batch, clock)
        return terms

    @torch.no_grad()
    def stochastic(
        self, x: Tensor, now: Tensor, then: Tensor, label: Tensor | None, batch: Batch, clock: Clock
    ) -> Tensor:
        """Where the solver arrives from level ``now`` at ``then``, by steps of equal ratio with fresh noise."""
        ratio = (then / now) ** (1 / self.solver_steps)
        with self.teacher.context():
            for k in range(self.solver_steps):
                noise = clock.normal(batch["id"], self.shape, f"solver {k}").to(x)
                here, there = now * ratio**k, now * ratio ** (k + 1)
                x = stochastic_step(self.real, x, here, there, noise, strength=self.strength, **conditioned(label))
        return x

    def fooling(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Term:
        """The generator's adversarial loss at its noised samples, of the levels between ``t_min`` and ``t_max``."""
        at = self.noised(samples, label, batch, clock, "fooling", low=self.t_min, high=self.t_max, through=True)
        return Term.of(real_is_real(self.logit_through(at)), weight=self.gan_weight)
