"""Diff-Instruct: one-step generators by the integral of the KL divergence over noise levels."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.losses import matching_direction, surrogate
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class DiffInstruct(GeneratorMethod):
    """Diff-Instruct (Luo et al., arXiv 2305.18455, algorithm 1).

    The generator descends the integral KL divergence ``int w(t) KL(q_t, p_t) dt``, whose gradient is the difference of
    critic's and teacher's scores at its noised samples, weighted by ``w`` (theorem 3.1). No sample's gradient is
    divided by its own size as in distribution matching distillation, and there is no regression.

    The integral is over positions of the Karras grid, and ``w`` is a power of the level, which the paper leaves open.

    Args:
        level_power: of ``w(sigma) = sigma^level_power``: at 2 the direction is the difference of the denoisers, at 1
            that of the predicted noises, at 0 that of the scores.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, level_power: float = 2.0, **rest: Any) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0:
            raise UserError("diff_instruct: critic_updates must be 1 or more")
        self.level_power = level_power

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The surrogate of the integral KL's gradient."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        direction = matching_direction(samples, *self.estimates(at), normalise=False)
        weight = at.sigma ** (self.level_power - 2)
        return {"integral_kl": Term.of(surrogate(samples, like(weight, direction) * direction))}
