"""FreeFlow: a flow map learnt from the prior alone, and a correction by the score of what it makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.flows import flow_step, mean_velocity, need_jumps
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import tangent
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class FreeFlow(GeneratorMethod):
    """Flow map distillation without data (Tong et al., arXiv 2511.19428).

    Noise is where student and teacher agree for certain, so only noise is drawn. The mean velocity u from the start
    over a way of length ``d`` has to satisfy ``u + d du/dd = v(x, end)``, with the teacher's velocity v at the point
    ``x`` that it reaches itself; the derivative, in the one argument, is taken forward and stands on the side of the
    target. Errors add up along the way, and a correction by the difference of two scores, the teacher's and that of a
    network which learns what the student makes, gives the law at the end back.

    The student takes two levels (``net: {jumps: true}``, ``rule: map``) and makes one step; levels are those of the
    straight path, from the student's highest. What differs: the correction is that of distribution matching, normalised
    by each sample's distance to the teacher's estimate; lengths are uniform; and the strength of guidance is fixed.

    Args:
        prediction: weight of the error of the mean velocity.
        correction: weight of the correction; 0 leaves the second network out.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, prediction: float = 1.0, correction: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        if min(prediction, correction) < 0 or prediction + correction == 0:
            raise UserError("freeflow: prediction and correction must not be negative, nor both 0")
        if correction > 0 and self.critic_updates == 0:
            raise UserError("freeflow: critic_updates must be 1 or more where there is a correction")
        self.prediction = prediction
        self.correction = correction

    def setup(self, parts: Parts) -> None:
        """The student must be a map of one step from the highest level.

        Raises:
            UserError: it is none, or makes several steps.
        """
        if self.correction == 0:
            self.critic_updates = 0
        super().setup(parts)
        if not hasattr(parts.student, "net"):
            raise UserError("freeflow trains a flow map: student: {name: few_step, rule: map, net: {jumps: true}}")
        need_jumps(parts)
        if int(getattr(parts.student, "nfe", 1)) != 1:
            raise UserError("freeflow: a map from the start alone makes one step: student: {nfe: 1}")
        self.top = float(parts.student.levels[0])  # type: ignore[index]

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The error of the mean velocity on the way, and the correction at its end."""
        terms = {}
        if self.prediction > 0:
            terms["prediction"] = Term.of(self.on_the_way(batch, clock), weight=self.prediction)
        if self.correction > 0:
            samples, label = self.generate(batch, clock, "generator")
            terms["correction"] = Term.of(self.matching(samples, label, batch, clock), weight=self.correction)
        return terms

    def on_the_way(self, batch: Batch, clock: Clock) -> Tensor:
        """The squared error [B] of the mean velocity to what its own derivative and the teacher say it must be."""
        label = self.draw_label(batch["id"], clock, "way")
        eps = clock.normal(batch["id"], self.shape, "way start")
        u = clock.uniform(batch["id"], (1,), "way length").squeeze(1)
        first = torch.full_like(u, self.top / (1 + self.top))
        end = (u * first).clamp_min(self.sigma_min / (1 + self.sigma_min))
        z = like(first, eps) * eps
        answer = self.mean_velocity(z, first, end, label)
        target = self.target(z, first, end, label)
        return squared_error(answer, target)

    def mean_velocity(self, z: Tensor, first: Tensor, end: Tensor, label: Tensor | None) -> Tensor:
        """The student's, from time ``first`` of the straight path to ``end``."""
        return mean_velocity(lambda x, sigma, to: self.student(x, label, at=sigma, to=to), z, first, end)

    def target(self, z: Tensor, first: Tensor, end: Tensor, label: Tensor | None) -> Tensor:
        """``v(x, end) - d du/dd`` at the point x that the student reaches, without gradient."""
        longer = -torch.ones_like(end)
        value, change = tangent(lambda end: self.mean_velocity(z, first, end, label), (end,), (longer,))
        reached = flow_step(z, value, first, end)
        with torch.no_grad(), self.teacher.context():
            denoised = self.real(reached / like(1 - end, z), end / (1 - end), **conditioned(label))
        velocity = (reached - denoised) / like(end, z)
        return velocity - like(first - end, z) * change
