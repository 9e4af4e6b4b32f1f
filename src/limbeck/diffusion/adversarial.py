"""A generator's method with a discriminator: a head on the critic's features tells real from generated noised samples.

Real samples are the data's, or the teacher's own. Head and critic step together; the critic's features learn from both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import Pairs, conditioned
from limbeck.diffusion.gan import HEAD, Features, Head, fake_is_fake, real_is_real
from limbeck.diffusion.generators import CRITIC, GeneratorMethod, Noised
from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError


class AdversarialMethod(GeneratorMethod, Pairs):
    """Base of the methods with a teacher's denoiser, a fake score and a discriminator on the fake score's features.

    Args:
        gan_weight: of the generator's adversarial loss.
        discriminator_weight: of the discriminator's loss beside the critic's denoising; 0 leaves the head out.
        head_width: hidden units of the head.
        features: path of the critic's module that the head reads; by default the network's own choice.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    needs_head = False
    """Whether the method is nothing without its head."""

    def __init__(
        self,
        *,
        gan_weight: float = 3e-3,
        discriminator_weight: float = 1e-2,
        head_width: int = 128,
        features: str | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if min(gan_weight, discriminator_weight) < 0 or head_width < 1:
            raise UserError("gan_weight and discriminator_weight must not be negative, head_width must be 1 or more")
        if self.critic_updates == 0:
            raise UserError("critic_updates must be 1 or more: a fake score that never learns says nothing")
        if discriminator_weight == 0 and (gan_weight > 0 or self.needs_head):
            raise UserError("discriminator_weight must be above 0 where a discriminator is asked")
        self.gan_weight = gan_weight
        self.discriminator_weight = discriminator_weight
        self.head_width = head_width
        self.features = features

    def setup(self, parts: Parts) -> None:
        """Take the generator, and build its critic and the head on it.

        Raises:
            UserError: the critic does not say where its features are.
        """
        super().setup(parts)
        if self.discriminator_weight > 0:
            critic = self.learners[CRITIC]
            self.look = Features(critic, self.features)
            self.learners[HEAD] = Head(self.look.width(self.shape), self.head_width)

    # -- the discriminator ---------------------------------------------------------------------------------------------

    def logit(self, at: Noised) -> Tensor:
        """The logarithm [B] of the density of real over generated noised samples, as the head sees it."""
        critic = self.learners[CRITIC]
        logit: Tensor = self.learners[HEAD](self.look(critic, at.x, at.sigma, **conditioned(at.label)))
        return logit

    def logit_through(self, at: Noised) -> Tensor:
        """Likewise, with a gradient in ``at.x`` and none in the weights of critic and head."""
        with frozen(self.learners[CRITIC], self.learners[HEAD]):
            return self.logit(at)

    def ratio(self, at: Noised, log_bound: float) -> Tensor:
        """Density of real over generated [B], its logarithm bent to stay in bounds; its gradient is in ``at.x``."""
        return torch.exp(log_bound * torch.tanh(self.logit_through(at) / log_bound))

    def fooling(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Term:
        """The generator's adversarial loss at its noised samples, of all levels."""
        at = self.noised(samples, label, batch, clock, "fooling", through=True)
        return Term.of(real_is_real(self.logit_through(at)), weight=self.gan_weight)

    def telling_apart(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Term:
        """The discriminator's loss; real and generated samples share level and noise."""
        real, real_label = self.clean(batch, clock, name)
        both = torch.cat([samples, real.to(samples.dtype)])
        labels = None if label is None or real_label is None else torch.cat([label, real_label])
        twice = {**batch, "id": torch.cat([batch["id"], batch["id"]])}
        fake_logit, real_logit = self.logit(self.noised(both, labels, twice, clock, f"{name} apart")).chunk(2)
        loss = fake_is_fake(fake_logit) + real_is_real(real_logit)
        return Term.of(loss, weight=self.discriminator_weight)

    # -- a step --------------------------------------------------------------------------------------------------------

    def critic_update(self, batch: Batch, clock: Clock, name: str) -> Update:
        """One step of critic and head together."""
        if HEAD not in self.learners:
            return super().critic_update(batch, clock, name)
        return Update((CRITIC, HEAD), partial(self.critic_terms, batch, clock, name))

    def critic_terms(self, batch: Batch, clock: Clock, name: str) -> dict[str, Term]:
        """Denoising and discrimination of the same fresh samples."""
        with torch.no_grad():
            samples, label = self.generate(batch, clock, name)
        return {
            "denoising": Term.of(self.denoising(samples, label, batch, clock, name)),
            "discriminator": self.telling_apart(samples, label, batch, clock, name),
        }
