"""Hyper-SD: consistency in ever fewer segments of the trajectory, then score distillation and feedback."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.generators import CRITIC, GeneratorMethod
from limbeck.diffusion.losses import matching_direction, surrogate
from limbeck.diffusion.paths import like
from limbeck.diffusion.segments import SegmentedMethod, stage_of
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class HyperSD(GeneratorMethod, SegmentedMethod):
    """Hyper-SD (Ren et al., arXiv 2404.13686).

    *Trajectory-segmented consistency*: the trajectory is cut into segments, and from two neighbouring levels of one the
    network must arrive at the same place, the segment's start. Stage after stage there are fewer segments, down to as
    many as the student has steps (``rule: ode``); stages share the training equally and the learning rate anneals in
    each. A network that takes two levels (``net: {jumps: true}``, ``rule: map``) learns to arrive at any level down to
    the start, and may then take any number of steps.

    *Score distillation* finishes the training, if ``finish`` is above 0: distribution matching at the samples of the
    whole generator, with a critic that learns from the last stage on. *Feedback* beside it follows the gradient of a
    reward: the logarithm of the probability of the sample's class given the noised sample, which a conditional teacher
    knows, as the difference of its estimates with and without the class.

    What differs: there is no adversarial loss beside the mean square; the rewards of the paper are networks that judge
    pictures, and feedback is there a LoRA of its own; the grid is Karras's; all stages are of the same length.

    Args:
        finish: share of the training that is left to score distillation and feedback; 0 has none, and no critic.
        feedback: weight of the reward's gradient beside that of distribution matching.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, finish: float = 0.0, feedback: float = 0.0, **rest: Any) -> None:
        super().__init__(**rest)
        if not 0 <= finish < 1 or (finish > 0 and self.critic_updates == 0):
            raise UserError("hyper_sd: finish must be at least 0 and under 1, and takes critic_updates of 1 or more")
        self.finish = finish
        self.feedback = feedback

    def setup(self, parts: Parts) -> None:
        """Take the student, and build a critic if there is a finish.

        Raises:
            UserError: feedback is asked without classes.
        """
        super().setup(parts)
        if self.feedback and self.classes is None:
            raise UserError("feedback is on classes: give student and teacher 'classes', or leave feedback at 0")

    @property
    def has_critic(self) -> bool:
        """With score distillation."""
        return self.finish > 0

    # -- the stages ----------------------------------------------------------------------------------------------------

    def stage(self, clock: Clock) -> tuple[int, float]:
        """Which stage it is, the finish being one more, and the share of it that is done."""
        if clock.progress < 1 - self.finish:
            return stage_of(clock.progress / (1 - self.finish), len(self.segments))
        return len(self.segments), (clock.progress - (1 - self.finish)) / self.finish

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The student by what is due, and the critic from the last stage on."""
        stage, _ = self.stage(clock)
        finishing = stage == len(self.segments)
        yield Update("student", partial(self.generator_terms if finishing else self.terms, batch, clock))
        if CRITIC in self.learners and stage >= len(self.segments) - 1:
            for k in range(self.critic_updates):
                yield self.critic_update(batch, clock, f"critic {k}")

    # -- the finish ----------------------------------------------------------------------------------------------------

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching and feedback at the generator's noised samples."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        real, fake = self.estimates(at)
        terms = {"distribution": Term.of(surrogate(samples, matching_direction(samples, real, fake)))}
        if self.feedback:
            scale = (samples - real).detach().abs().flatten(1).mean(dim=1).clamp_min(1e-5)
            direction = self.disliked(at.x, at.sigma, at.label) / like(scale, samples)
            terms["feedback"] = Term.of(surrogate(samples, direction), weight=self.feedback)
        return terms

    @torch.no_grad()
    def disliked(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """``-sigma^2`` times the gradient of ``log p(label | x)`` at noised samples: unconditional less conditional."""
        with self.teacher.context():
            teacher = self.teacher.module
            return teacher(x, sigma) - teacher(x, sigma, **conditioned(label))
