"""SDXL-Lightning: progressive distillation whose later rounds are judged by a discriminator instead of by distance."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.discriminators import Discriminator
from limbeck.diffusion.gan import HEAD, fake_is_fake, real_is_real
from limbeck.diffusion.methods.progressive_distillation import ProgressiveDistillation
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.registry import register

RELAXED = "relaxed_discriminator"
"""The role of the discriminator that sees where a step ends and not where it began."""


class Start(NamedTuple):
    """Points ``x`` at a level of the round's grid, that level, the one between, that of the end, and the class."""

    x: Tensor
    now: Tensor
    middle: Tensor
    then: Tensor
    label: Tensor | None


@register("method")
class SDXLLightning(ProgressiveDistillation):
    """Progressive adversarial diffusion distillation (Lin et al., arXiv 2402.13929).

    The first rounds are those of progressive distillation, by the squared error, with ``guidance`` in the teacher. In
    the others a student that cannot follow the teacher's two steps exactly shall not average them: a discriminator sees
    where a step begins and where it ends, real ends being the teacher's and the others the student's, which keeps to
    the trajectory (section 3.2). Then, in the second part of each such round, another discriminator that sees the end
    alone lets the student leave the trajectory where its capacity does not suffice (section 3.3). Losses are the
    non-saturating ones, and there is no other in these rounds. Discriminators begin anew in each round.

    What differs: rounds halve the steps (the paper goes from 32 to 8 at once); the discriminators are small networks of
    their own instead of the teacher's encoder, with R1; ends are not noised again for them; and whether adapters or all
    weights learn is up to the student's model.

    Args:
        mse_rounds: how many of the rounds are by the squared error, the first ones.
        relaxed: share of each other round, its last part, in which the discriminator sees the end alone.
        r1: weight of the gradient penalty on real ends.
        width: of the discriminators.
        depth: of the discriminators.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        mse_rounds: int = 2,
        relaxed: float = 0.5,
        r1: float = 0.02,
        width: int = 128,
        depth: int = 3,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 0 <= mse_rounds <= self.rounds or not 0 <= relaxed <= 1 or r1 < 0 or width < 1 or depth < 0:
            raise UserError(
                "sdxl_lightning: mse_rounds must be from 0 to rounds, relaxed from 0 to 1, r1 not negative, width 1 or "
                "more, and depth 0 or more"
            )
        self.mse_rounds = mse_rounds
        self.relaxed = relaxed
        self.r1 = r1
        self.width = width
        self.depth = depth

    def setup(self, parts: Parts) -> None:
        """Take the student, and build the two discriminators."""
        super().setup(parts)
        if self.mse_rounds < self.rounds:
            sigma_data = float(getattr(parts.student.net, "sigma_data", 0.5))
            for role in (HEAD, RELAXED):
                self.learners[role] = Discriminator(
                    self.shape, self.width, self.depth, sigma_data, self.classes, pairs=role == HEAD
                )

    # -- rounds --------------------------------------------------------------------------------------------------------

    def judge(self, clock: Clock) -> str | None:
        """The role of the discriminator that is due, or None in a round by the squared error."""
        if self.round(clock) < self.mse_rounds:
            return None
        return RELAXED if self.pace(clock) >= 1 - self.relaxed else HEAD

    def before_step(self, clock: Clock) -> Collection[str]:
        """Between two rounds the student becomes the teacher, and discriminators begin anew."""
        super().before_step(clock)
        begins = clock.step > 0 and self.round(clock) != (clock.step - 1) * self.rounds // max(clock.total, 1)
        return [role for role in (HEAD, RELAXED) if begins and role in self.learners]

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The discriminator that is due, then the student."""
        role = self.judge(clock)
        if role is None:
            yield Update("student", partial(self.terms, batch, clock))
            return
        yield Update(role, partial(self.telling_apart, role, batch, clock))
        yield Update("student", partial(self.fooling, role, batch, clock))

    # -- a step --------------------------------------------------------------------------------------------------------

    def start(self, batch: Batch, clock: Clock, name: str) -> Start:
        """Noised clean samples at a random level of the round's grid."""
        x0, label = self.clean(batch, clock, name)
        levels = self.three(clock.uniform(batch["id"], (1,), f"{name} level").squeeze(1), clock)
        x = x0 + like(levels[0], x0) * clock.normal(batch["id"], self.shape, f"{name} noise").to(x0)
        return Start(x, *levels, label)

    def taught(self, at: Start, clock: Clock) -> Tensor:
        """Where two steps of the round's teacher arrive."""
        target = self.target(at.x, at.now, at.middle, at.then, at.label, first=self.round(clock) == 0)
        return steps.jump(at.x, target, at.now, at.then)

    def arrived(self, at: Start) -> Tensor:
        """Where one step of the student arrives."""
        return steps.jump(at.x, self.network(at.x, at.now, at.label), at.now, at.then)

    def logit(self, role: str, end: Tensor, at: Start, **given: bool) -> Tensor:
        """Of ends [B], beside where they began for the discriminator that sees it."""
        beside = {"beside": at.x, "at": at.now} if role == HEAD else {}
        logit: Tensor = self.learners[role](end, at.then, at.label, **beside, **given)
        return logit

    def telling_apart(self, role: str, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The discriminator's loss, and the penalty on its slope at real ends."""
        with torch.no_grad():
            at = self.start(batch, clock, "apart")
            real, fake = self.taught(at, clock), self.arrived(at)
        is_real, penalty = self.logit(role, real, at, penalised=True).unbind(dim=1)
        apart = real_is_real(is_real) + fake_is_fake(self.logit(role, fake, at))
        return {"discriminator": Term.of(apart), "r1": Term.of(penalty, weight=self.r1)}

    def fooling(self, role: str, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The student's adversarial loss."""
        with torch.no_grad():
            at = self.start(batch, clock, "student")
        end = self.arrived(at)
        with frozen(self.learners[role]):
            return {"adversarial": Term.of(real_is_real(self.logit(role, end, at)))}
