"""rCM: continuous-time consistency, regularised by distribution matching at the student's own samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.flows import normalised
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.methods.scm import SCM, WEIGHT
from limbeck.diffusion.paths import like
from limbeck.diffusion.rollouts import renoised
from limbeck.diffusion.steps import tangent
from limbeck.engine.method import Batch, Clock, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


def rcm_tangent(
    x: Tensor, t: Tensor, velocity: Tensor, field: Tensor, change: Tensor, sigma_data: float, warm: float = 1.0
) -> Tensor:
    """The tangent of sCM with a warm-up that turns instead of one that shrinks (arXiv 2510.08431).

    ``-cos t sqrt(1 - warm^2 sin^2 t) (sigma_data F - dx/dt) - warm (cos t sin t x + sigma_data dF)``: that of
    :func:`limbeck.diffusion.flows.trig_tangent` for ``warm`` 1, and for 0 its first part over ``cos t``, with which the
    velocity is learnt at all times.

    Args:
        x: points of the path [B, *shape].
        t: their times [B].
        velocity: ``dx/dt`` there.
        field: ``F(x / sigma_data, t)``.
        change: the derivative of F along ``cos t sin t (dx/dt / sigma_data, 1)``.
        sigma_data: standard deviation of the data.
        warm: the share of the second part.
    """
    cos, sin = like(torch.cos(t), x), like(torch.sin(t), x)
    first = cos * torch.sqrt((1 - (warm * sin) ** 2).clamp_min(0))
    return -first * (sigma_data * field - velocity) - warm * (cos * sin * x + sigma_data * change)


@register("method")
class RCM(GeneratorMethod, SCM):
    """Score-regularised continuous-time consistency (Zheng et al., arXiv 2510.08431).

    sCM, which covers every mode but blurs, and beside it, once its tangent is warm, the gradient of distribution
    matching, which sharpens but seeks modes. The samples that are matched come from a rollout of the student: from
    pure noise, up to ``rollout - 1`` estimates with fresh noise at random falling levels between, then one that takes
    the gradient. There is no discriminator.

    What differs: a step has the student's update and ``critic_updates`` of the critic, where the paper counts the
    student's as one of five; the critic learns from the start, since it may not be a copy of the teacher; levels of
    rollouts and of matching are uniform on the Karras grid; losses are means over the dimensions.

    Args:
        distribution_weight: of the distribution matching; the paper's is a hundredth of sCM's. With 0 there is no
            critic.
        rollout: calls of the network at most in a rollout, of which the last takes the gradient.
        mean: of the logarithm of the noise levels of sCM.
        std: standard deviation of that logarithm.
        learned_weight: whether levels are weighed by a network that learns beside the student, as in sCM.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        distribution_weight: float = 0.01,
        rollout: int = 4,
        mean: float = -0.8,
        std: float = 1.6,
        learned_weight: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, learned_weight=learned_weight, **rest)
        if rollout < 1:
            raise UserError(f"rcm: rollout must be 1 or more, not {rollout}")
        if distribution_weight > 0 and self.critic_updates == 0:
            raise UserError("rcm: critic_updates must be 1 or more; 0 is only for distribution_weight 0")
        self.distribution_weight = distribution_weight
        self.rollout = rollout

    @property
    def has_critic(self) -> bool:
        """With distribution matching."""
        return self.critic_updates > 0 and self.distribution_weight > 0

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The student, and the weight of its levels if it is learned, then the critic."""
        yield Update(("student", WEIGHT) if self.learned_weight else "student", partial(self.terms, batch, clock))
        for k in range(self.critic_updates if self.has_critic else 0):
            yield self.critic_update(batch, clock, f"critic {k}")

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Consistency and, after the warm-up, distribution matching."""
        terms = super().terms(batch, clock)
        if self.has_critic and clock.progress >= self.warmup:
            samples, label = self.generate(batch, clock, "generator")
            pull = self.matching(samples, label, batch, clock)
            terms["distribution"] = Term.of(pull, weight=self.distribution_weight)
        return terms

    def generate(self, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor | None]:
        """Samples at the end of a rollout, as long as any other's in the batch, and their class."""
        ids = batch["id"]
        label = self.draw_label(ids, clock, name)
        between = int(clock.uniform(torch.zeros(1, dtype=torch.int64), (1,), f"{name} stop") * self.rollout)
        places = clock.uniform(ids, (between,), f"{name} levels").sort(dim=1, descending=True).values
        levels = self.levels(torch.cat([places.new_ones(len(ids), 1), places], dim=1)).unbind(dim=1)
        draws = [clock.normal(ids, self.shape, f"{name} noise {k}") for k in range(between + 1)]
        with torch.no_grad():
            x = renoised(lambda x, sigma: self.network(x, sigma, label), draws[0] * self.sigma_max, levels, draws[1:])
        return self.network(x, levels[-1], label), label

    def against_tangent(self, x: Tensor, t: Tensor, velocity: Tensor, label: Tensor | None, warm: float) -> Tensor:
        """``sg[F + g]``, g the normalised tangent with this warm-up."""
        both = torch.cos(t) * torch.sin(t)
        points = x / self.sigma_data, t
        value, change = tangent(
            lambda scaled, t: self.field(scaled, t, label), points, (like(both, x) * velocity / self.sigma_data, both)
        )
        return value + normalised(rcm_tangent(x, t, velocity, value, change, self.sigma_data, warm), self.tangent_floor)
