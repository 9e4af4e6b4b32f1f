"""SIM: one-step generators by score implicit matching, with any distance between scores."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.diffusion.divergences import implicit_matching
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SIM(GeneratorMethod):
    """Score implicit matching (Luo et al., arXiv 2410.16794, algorithm 1).

    The generator lowers a distance between the scores of its noised law and the teacher's. The samples that it is
    taken over are held fixed, so that only the score of the generator's own law moves, which the score-gradient
    theorem (3.1) makes tractable; the pseudo-Huber distance bounds the pull of samples far from the teacher's law.

    The distance is between denoisers, ``sigma^2`` times the scores: the weight over levels that this amounts to keeps
    all levels of the data's size. Levels are uniform on the Karras grid.

    Args:
        distance: between the estimates of teacher and critic; of ``square`` the gradient is twice that of score
            identity distillation at ``alpha = 1`` without its weights.
        huber: c of the pseudo-Huber distance over ``sqrt(dimensions)``, in the data's unit.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}
    dial = "huber"

    def __init__(
        self,
        *,
        distance: Literal["pseudo_huber", "square"] = "pseudo_huber",
        huber: float = 0.1,
        t_min: float = 0.0,
        t_max: float = 0.8,
        **rest: Any,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max, **rest)
        if self.critic_updates == 0 or huber <= 0:
            raise UserError("sim: critic_updates must be 1 or more, and huber above 0")
        self.distance: Literal["pseudo_huber", "square"] = distance
        self.huber = huber

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The implicit matching loss at the generator's noised samples."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max, through=True)
        real, fake = self.estimates_through(at)
        loss = implicit_matching(samples, real, fake, distance=self.distance, huber=self.huber)
        return {"implicit": Term.of(loss)}
