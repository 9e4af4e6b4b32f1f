"""f-distill: distribution matching by any f-divergence, with the ratio of densities from a discriminator."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.adversarial import AdversarialMethod
from limbeck.diffusion.divergences import Divergence, standard
from limbeck.diffusion.losses import matching_direction, surrogate
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class FDistill(AdversarialMethod):
    """One-step generators with f-divergence distribution matching (Xu et al., arXiv 2502.15681).

    The gradient of an f-divergence is that of distribution matching with each sample weighted by
    ``h(r) = r^2 f''(r)`` of the ratio of densities r, real over generated, at its noised sample (theorem 1): 1 for the
    reverse KL, which is DMD2; r for the forward KL, which pulls where the generator has too little; and in between for
    Jensen and Shannon's. The discriminator of DMD2 gives ``r``.

    The paper divides ``h`` by its mean over the batch. Here it is divided by its value at ``r = 1``, so that a step
    does not depend on how a batch is cut, and the logarithm of r is bounded instead.

    Args:
        divergence: which one.
        log_ratio_max: bound of the logarithm of the ratio.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}
    needs_head = True

    def __init__(
        self,
        *,
        divergence: Divergence = "js",
        log_ratio_max: float = 3.0,
        critic_updates: int = 5,
        discriminator_weight: float = 0.1,
        **rest: Any,
    ) -> None:
        super().__init__(critic_updates=critic_updates, discriminator_weight=discriminator_weight, **rest)
        if log_ratio_max <= 0:
            raise UserError(f"f_distill: log_ratio_max must be above 0, not {log_ratio_max}")
        self.divergence: Divergence = divergence
        self.log_ratio_max = log_ratio_max

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Weighted distribution matching, and fooling the discriminator."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        h = standard(self.ratio(at, self.log_ratio_max).detach(), self.divergence).value
        direction = matching_direction(samples, *self.estimates(at))
        return {
            "distribution": Term.of(surrogate(samples, like(h, direction) * direction)),
            "adversarial": self.fooling(samples, label, batch, clock),
        }
