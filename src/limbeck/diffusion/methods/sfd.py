"""SFD: a one-step generator that forgets a class, whose samples become those of a safe one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.generators import CRITIC, Noised
from limbeck.diffusion.losses import identity_loss
from limbeck.diffusion.methods.sid import SiD
from limbeck.engine.method import Batch, Clock, Parts, Term, frozen
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SFD(SiD):
    """Score forgetting distillation (Chen et al., arXiv 2409.11219).

    Score identity distillation of a conditional teacher, which for the class to forget is asked for its estimate at a
    safe class, while the critic keeps the sample's own: the generator's law given the forgotten class becomes the
    teacher's given the safe one, and all others stay. Remaining and forgotten classes are drawn at a share of each in
    place of two batches, and the safe class is one for all samples.

    Args:
        forget: the class to forget.
        safe: the class whose score is taken in its place; the same class forgets nothing.
        forget_share: share of the samples that have the class to forget; the others' classes are uniform.
        forget_weight: of their loss, for the generator.
        forget_critic_weight: of their loss, for the critic.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        forget: int = 0,
        safe: int = 1,
        forget_share: float = 0.25,
        forget_weight: float = 1.0,
        forget_critic_weight: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0 or not 0 < forget_share < 1:
            raise UserError("sfd: critic_updates must be 1 or more, and forget_share between 0 and 1")
        self.forget = forget
        self.safe = safe
        self.forget_share = forget_share
        self.forget_weight = forget_weight
        self.forget_critic_weight = forget_critic_weight

    def setup(self, parts: Parts) -> None:
        """As all generators'.

        Raises:
            UserError: there are no such classes.
        """
        super().setup(parts)
        if self.classes is None or self.classes < 2:
            raise UserError("sfd forgets a class: give student and teacher 'classes', 2 or more")
        if not (0 <= self.forget < self.classes and 0 <= self.safe < self.classes):
            raise UserError(f"sfd: forget and safe must be classes, from 0 to {self.classes - 1}")

    def draw_label(self, ids: Tensor, clock: Clock, name: str) -> Tensor:
        """The class to forget for a share of the samples, a uniform one of the others for the rest."""
        u = clock.uniform(ids, (2,), f"{name} class")
        others = (u[:, 1] * ((self.classes or 2) - 1)).long()
        others = others + (others >= self.forget).long()
        return torch.where(u[:, 0] < self.forget_share, self.forget, others)

    def weights(self, label: Tensor, forgotten: float) -> Tensor:
        """One for the samples of the remaining classes, another for those to forget, [B]."""
        return torch.where(label == self.forget, forgotten, 1.0)

    def denoising(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the critic, at the samples' own classes."""
        errors = super().denoising(samples, label, batch, clock, name)
        return self.weights(cast(Tensor, label), self.forget_critic_weight) * errors

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The identity loss with the teacher at the safe class where the sample's is to be forgotten."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max, through=True)
        loss = identity_loss(samples, *self.estimates_through(at), self.alpha)
        return {"identity": Term.of(self.weights(cast(Tensor, label), self.forget_weight) * loss)}

    def estimates_through(self, at: Noised) -> tuple[Tensor, Tensor]:
        """The teacher's at the safe class and the critic's at the sample's own, with a gradient in ``at.x`` alone."""
        own = cast(Tensor, at.label)
        asked = torch.where(own == self.forget, self.safe, own)
        with self.teacher.context(), frozen(self.learners[CRITIC]):
            return self.real(at.x, at.sigma, **conditioned(asked)), self.fake(at)
