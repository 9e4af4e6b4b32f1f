"""SiD: one-step generators by identities between scores, without data and without samples of the teacher."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.losses import identity_loss
from limbeck.engine.method import Batch, Clock, Term
from limbeck.registry import register


@register("method")
class SiD(GeneratorMethod):
    """Score identity distillation (Zhou et al., arXiv 2404.04057, algorithm 1).

    The generator lowers a model-based Fisher divergence from its noised law to the teacher's. What cannot be known of
    it, the score of its own law, is replaced by the critic's in a way that also uses the identity ``E[D] = x``; the
    gradient passes through both networks to the sample. Levels are uniform on the Karras grid up to ``t_max``, 0.8 in
    the paper, and the student takes its noise at a level of 2.5 there (``student.levels: [2.5]``).

    Args:
        alpha: 1 is the choice that hardly fails, 1.2 the paper's best for late training; at 1/2 the gradient is that
            of the divergence itself for a perfect critic.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}
    dial = "alpha"

    def __init__(self, *, alpha: float = 1.0, t_min: float = 0.0, t_max: float = 0.8, **rest: Any) -> None:
        super().__init__(t_min=t_min, t_max=t_max, **rest)
        self.alpha = alpha

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The identity loss at the generator's noised samples."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max, through=True)
        real, fake = self.estimates_through(at)
        return {"identity": Term.of(identity_loss(samples, real, fake, self.alpha))}
