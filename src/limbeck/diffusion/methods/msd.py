"""MSD: several one-step students that share out the classes of one teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import registry
from limbeck.diffusion.base import Pairs, conditioned
from limbeck.diffusion.experts import ByClass
from limbeck.diffusion.generators import GeneratorMethod, facts_of
from limbeck.diffusion.losses import denoising_weight, squared_error
from limbeck.diffusion.networks import inherit
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class MSD(GeneratorMethod, Pairs):
    """Multi-student diffusion distillation (arXiv 2410.23274).

    The classes are shared out among the students of the model ``students`` before training, and each learns by
    distribution matching of its own classes alone, beside a fake score of its own: more capacity for a class at the
    same cost of a sample. Students that are smaller than the teacher, and so cannot start as it, are first trained as
    denoisers, by the teacher's estimates of noised samples of their classes (teacher score matching).

    All students are trained in one run on batches of all classes, which is the same as runs of their own with as many
    smaller batches, but that gradients are clipped together. Samples to match scores on are the data's or the
    teacher's own. The adversarial stage of the paper is left out.

    Args:
        score_matching: share of the steps in which students and critics learn to denoise as the teacher does.
        critic_updates: 5 in the paper for ImageNet, as in DMD2.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, score_matching: float = 0.0, critic_updates: int = 1, **rest: Any) -> None:
        super().__init__(critic_updates=critic_updates, **rest)
        if not 0 <= score_matching < 1 or critic_updates == 0:
            raise UserError("msd: score_matching must be a share below 1, and critic_updates 1 or more")
        self.score_matching = score_matching

    def setup(self, parts: Parts) -> None:
        """As all generators'.

        Raises:
            UserError: the student is not several.
        """
        net: Any = getattr(parts.student, "net", None)
        if not isinstance(net, ByClass):
            raise UserError("msd trains several students: student: {name: students, count: 2, net: {...}}")
        if self.from_teacher:
            for each in net.nets:
                inherit(each, parts.teachers["teacher"].module)
        super().setup(parts)

    def build_critic(self, parts: Parts) -> nn.Module:
        """A fake score for each student, by default like it."""
        students: Any = parts.student.net
        facts = facts_of(self.teacher.module)
        if self.critic is None:
            critics = [copy.deepcopy(net) for net in students.nets]
        else:
            critics = [registry.build("model", self.critic, offers={**parts.offers, **facts}) for _ in students.nets]
            for critic in critics if self.from_teacher else ():
                inherit(critic, self.teacher.module)
        self.critic_sigma_data = float(getattr(critics[0], "sigma_data", facts["sigma_data"] or 0.5))
        return ByClass(critics, students.owners.tolist())

    # -- a step --------------------------------------------------------------------------------------------------------

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Score matching of students and critics, then generators and critics in turn."""
        if clock.progress < self.score_matching:
            yield Update(("student", "fake_score"), partial(self.score_terms, batch, clock))
        else:
            yield from super().updates(batch, clock)

    def score_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Weighted distance of students' and critics' estimates to the teacher's, at noised samples."""
        samples, label = self.clean(batch, clock, "clean")
        at = self.noised(samples, label, batch, clock, "clean")
        with torch.no_grad(), self.teacher.context():
            target: Tensor = self.real(at.x, at.sigma, **conditioned(label))
        weight = denoising_weight(at.sigma, self.critic_weighting, self.critic_sigma_data)
        student = self.student(at.x, label, at=at.sigma)
        return {
            "student_score": Term.of(weight * squared_error(student, target)),
            "critic_score": Term.of(weight * squared_error(self.fake(at), target)),
        }

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching; each sample's gradient is in the student of its class."""
        samples, label = self.generate(batch, clock, "generator")
        return {"distribution": Term.of(self.matching(samples, label, batch, clock))}
