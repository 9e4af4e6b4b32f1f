"""DMD2: distribution matching without regression, with a faster critic, a discriminator and several steps."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.adversarial import AdversarialMethod
from limbeck.diffusion.gan import HEAD
from limbeck.engine.method import Batch, Clock, Term
from limbeck.registry import register


@register("method")
class DMD2(AdversarialMethod):
    """Improved distribution matching distillation (Yin et al., arXiv 2405.14867).

    What held the first method down is taken away: the regression on pairs is replaced by several critic updates per
    step of the generator (section 4.2), and a discriminator on the critic's features, at all noise levels, lets the
    generator see real samples, so that it can mend what the teacher's score has wrong (section 4.3). A generator of
    several steps is trained on the states that it reaches itself (section 4.5).

    Real samples are the data's where the recipe has some, else the teacher's own. Every update draws fresh samples.

    Args:
        critic_updates: 5 in the paper for ImageNet, 10 for large text-to-image models.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, critic_updates: int = 5, **rest: Any) -> None:
        super().__init__(critic_updates=critic_updates, **rest)

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching and, with a head, fooling it."""
        samples, label = self.generate(batch, clock, "generator")
        terms = {"distribution": Term.of(self.matching(samples, label, batch, clock))}
        if HEAD in self.learners:
            terms["adversarial"] = self.fooling(samples, label, batch, clock)
        return terms
