"""SIGN: an idempotent generator, distilled from a teacher's score."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.base import Pairs
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.idempotent import Idempotent
from limbeck.diffusion.losses import squared_error
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SIGN(GeneratorMethod, Pairs):
    """Score-based idempotent distillation (arXiv 2509.21470).

    One function of the sample alone makes data of noise, leaves data as they are, and so is idempotent: applied to its
    own results, or to samples that something was done to, it gives samples. Idempotent generative networks ask for it
    with an adversarial term; here distribution matching with the teacher's score takes its place.

    Of the paper only this idea could be had, so the form of the terms is this library's: the gradient of distribution
    matching for the law of the results, the mean squared distance of ``f(x)`` to ``x`` at samples of the data or of the
    teacher, and that of ``f(y)`` to ``y`` at results ``y`` that take no gradient: they are made fixed points where they
    are, and not drawn to where the function already is the identity.

    Args:
        reconstruction_weight: of the distance at real samples.
        idempotence_weight: of the distance at the function's own results.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, reconstruction_weight: float = 1.0, idempotence_weight: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0 or min(reconstruction_weight, idempotence_weight) < 0:
            raise UserError("sign: critic_updates must be 1 or more, and the weights not negative")
        self.reconstruction_weight = reconstruction_weight
        self.idempotence_weight = idempotence_weight

    def setup(self, parts: Parts) -> None:
        """As all generators'.

        Raises:
            UserError: the student is no function of the sample alone.
        """
        super().setup(parts)
        if not isinstance(parts.student, Idempotent):
            raise UserError("sign trains a function of the sample alone: student: {name: idempotent, net: {...}}")
        self.level = parts.student.levels[0]

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching, and the identity at real samples and at the function's own."""
        samples, label = self.generate(batch, clock, "generator")
        terms = {"distribution": Term.of(self.matching(samples, label, batch, clock))}
        if self.idempotence_weight > 0:
            fixed = squared_error(self.applied(samples.detach(), label), samples.detach())
            terms["idempotence"] = Term.of(fixed, weight=self.idempotence_weight)
        if self.reconstruction_weight > 0:
            real, real_label = self.clean(batch, clock, "real")
            same = squared_error(self.applied(real, real_label), real)
            terms["reconstruction"] = Term.of(same, weight=self.reconstruction_weight)
        return terms

    def applied(self, x: Any, label: Any) -> Any:
        """The function at points, through the module as the loop wrapped it."""
        return self.student(x, label, at=x.new_full((len(x),), self.level))
