"""Phased DMD: a network for every step, each trained alone to give its level the law of the teacher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from limbeck.diffusion.experts import ByLevel
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.methods.tdm import TDM, Onwards, Reached
from limbeck.diffusion.networks import inherit
from limbeck.engine.checkpoint import whole
from limbeck.engine.method import Batch, Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class PhasedDMD(TDM):
    """Phased distribution matching distillation (arXiv 2510.27684).

    The generator has an expert for every step (model ``experts``). They are trained one after another, each for an
    equal share of the run: expert k takes what its finished predecessors make of pure noise from level k to the next,
    and there its law is matched to the teacher's, at all levels above. No clean sample stands behind a point on the
    way, so the critic learns from the noise that is added to it, a target whose mean is the score of the noised point
    (score matching within subintervals). For the last expert all this is ordinary distribution matching.

    The paper works on the rectified-flow path with a velocity; here that is EDM's path, where a step on the line to
    the estimate is the same step of Euler. The critic's error is weighted by the share of fresh noise, which keeps it
    bounded where the paper clips. The critic and its optimizer go on from one phase to the next, the learning rates
    begin their schedules anew with each. All experts are trained; the paper may keep a base model's low-noise one.

    Args:
        critic_target: what the critic learns: the ``score``, or the step's clean ``estimate``, which is biased.
        intervals: levels at which laws are compared: from the expert's end up to the highest, ``nested``, or only up
            to where it begins, ``disjoint``.
        expert_start: whether an expert starts as its ``previous`` one ended, or with its ``own`` weights, which are the
            teacher's where it has its layers.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        critic_target: Literal["score", "estimate"] = "score",
        intervals: Literal["nested", "disjoint"] = "nested",
        expert_start: Literal["previous", "own"] = "previous",
        **rest: Any,
    ) -> None:
        super().__init__(critic_target=critic_target, **rest)
        self.intervals = intervals
        self.expert_start = expert_start

    def setup(self, parts: Parts) -> None:
        """As trajectory distribution matching, with experts.

        Raises:
            UserError: the student has no expert for each of its steps.
        """
        student: Any = parts.student
        if not isinstance(getattr(student, "net", None), ByLevel):
            raise UserError("phased_dmd trains a network for each step: student: {name: experts, net: {...}}")
        self.experts: tuple[nn.Module, ...] = tuple(student.net.nets)
        if self.from_teacher:
            for expert in self.experts:
                inherit(expert, parts.teachers["teacher"].module)
        super().setup(parts)

    def build_critic(self, parts: Parts) -> nn.Module:
        """By default like one expert."""
        student: Any = parts.student
        return super().build_critic(replace(parts, student=FewStep(self.experts[0], student.levels)))

    # -- the phases ----------------------------------------------------------------------------------------------------

    def phase(self, progress: float) -> int:
        """The expert that is trained at ``progress``."""
        count = len(self.experts)
        return min(int(progress * count + 1e-9), count - 1)

    def stop(self, clock: Clock, name: str) -> int | None:
        """The generator stops after the expert that is trained."""
        return self.phase(clock.progress) + 1

    def pace(self, clock: Clock) -> float:
        """The learning rates' schedules begin anew with each expert."""
        return max(0.0, clock.progress * len(self.experts) - self.phase(clock.progress))

    def onwards(self, reached: Reached, batch: Batch, clock: Clock, name: str, *, low: float, high: float) -> Onwards:
        """The point noised to a random level above it."""
        if self.intervals == "disjoint":
            begins = torch.tensor(self.steps[self.phase(clock.progress)])
            high = min(high, float(self.position(begins)))
        return super().onwards(reached, batch, clock, name, low=min(low, high), high=high)

    def after_step(self, clock: Clock) -> None:
        """Give the next expert its start when one is done."""
        super().after_step(clock)
        done, then = (self.phase(step / max(clock.total, 1)) for step in (clock.step, clock.step + 1))
        if then != done and self.expert_start == "previous":
            with torch.no_grad():
                learnt = self.experts[done].state_dict()
                for key, value in self.experts[then].state_dict().items():
                    whole(value).copy_(whole(learnt[key]))
