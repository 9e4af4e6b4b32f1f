"""Uni-Instruct: one-step generators by f-divergences expanded along the diffusion."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.diffusion.adversarial import AdversarialMethod
from limbeck.diffusion.divergences import Divergence, standard, weighted_fisher
from limbeck.diffusion.losses import identity_loss
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class UniInstruct(AdversarialMethod):
    """Unified diffusion divergence instruction (Wang et al., arXiv 2505.20755).

    Any f-divergence of the generator's law from the teacher's is an integral over noise levels of their Fisher
    divergence, weighted by a function ``h`` of the ratio of densities (theorem 3.1), which a discriminator on the
    critic's features gives: with ``h = 1``, the reverse KL, it is score identity distillation, with ``h = r`` the
    forward KL.

    The paper's code takes the weights as constants, which for all but the reverse KL leaves out how they change with
    the generator; ``gradient: exact`` has the whole gradient (:func:`limbeck.diffusion.divergences.weighted_fisher`),
    in place of the paper's separate terms for each divergence. The discriminator acts from the start, without a warm
    start of the generator, and the weights are over their value at ``r = 1`` instead of over the batch's sum.

    Args:
        divergence: which one.
        gradient: ``detached`` is the paper's code, with its ``alpha = 1``; ``exact`` is the divergence's own gradient.
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
        divergence: Divergence = "forward_kl",
        gradient: Literal["detached", "exact"] = "detached",
        log_ratio_max: float = 3.0,
        discriminator_weight: float = 0.1,
        t_min: float = 0.0,
        t_max: float = 0.8,
        **rest: Any,
    ) -> None:
        super().__init__(discriminator_weight=discriminator_weight, t_min=t_min, t_max=t_max, **rest)
        if log_ratio_max <= 0:
            raise UserError(f"uni_instruct: log_ratio_max must be above 0, not {log_ratio_max}")
        self.divergence: Divergence = divergence
        self.gradient: Literal["detached", "exact"] = gradient
        self.log_ratio_max = log_ratio_max

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted Fisher divergence at the generator's noised samples, and fooling the discriminator."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max, through=True)
        real, fake = self.estimates_through(at)
        r = self.ratio(at, self.log_ratio_max)
        if self.gradient == "exact":
            scale = (samples - real).detach().abs().flatten(1).mean(dim=1).clamp_min(1e-5)
            loss = weighted_fisher(samples, real, fake, r, self.divergence) / scale
        else:
            loss = standard(r.detach(), self.divergence).value * identity_loss(samples, real, fake, 1.0)
        return {"fisher": Term.of(loss), "adversarial": self.fooling(samples, label, batch, clock)}
