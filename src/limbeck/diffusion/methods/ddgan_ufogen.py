"""Denoising diffusion GANs: each of a few coarse steps is drawn from its law, which a discriminator compares."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.base import Pairs
from limbeck.diffusion.discriminators import Discriminator
from limbeck.diffusion.gan import HEAD, fake_is_fake, real_is_real
from limbeck.diffusion.latent import PosteriorSteps, posterior
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.registry import register


class Step(NamedTuple):
    """A real step: points ``x`` at the levels ``now`` and ``lower`` at ``then``, of the clean samples ``x0``."""

    x0: Tensor
    x: Tensor
    lower: Tensor
    now: Tensor
    then: Tensor
    label: Tensor | None


@register("method")
class DDGANUFOGen(Pairs):
    """Denoising diffusion GANs (Xiao et al., arXiv 2112.07804) and UFOGen (Xu et al., arXiv 2311.09257).

    A coarse step of the diffusion, from the point x at one of the student's levels to the next, has a law of many
    modes, which no estimate of the clean sample has. The generator is trained by a discriminator that sees steps, real
    ones of noised clean samples, and its own.

    With ``student: {name: posterior_steps}`` it is the first paper: the generator draws a clean sample with a latent,
    then the lower point from the Gaussian posterior (its equation 5), and the discriminator sees both points and the
    level (``sees: pair``), with R1. With a ``few_step`` student (``rule: renoise``) it is the second one: there is no
    latent, the clean sample is noised anew to the lower level, the discriminator sees the lower point alone (``sees:
    point``), and ``reconstruction`` holds the clean sample to the true one.

    What differs: the discriminator is a network of its own, small and conditioned on the lower level, the student may
    be of any kind, clean samples may be the teacher's, and the reconstruction has the same weight at all levels.

    Args:
        adversarial: weight of the generator's adversarial loss; with 0 only ``reconstruction`` is left.
        reconstruction: weight of the squared error of the clean sample.
        sees: what the discriminator is shown.
        r1: weight of the gradient penalty on real points.
        width: of the discriminator.
        depth: of the discriminator.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        adversarial: float = 1.0,
        reconstruction: float = 0.0,
        sees: Literal["pair", "point"] = "pair",
        r1: float = 0.02,
        width: int = 128,
        depth: int = 3,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if min(adversarial, reconstruction, r1) < 0 or adversarial + reconstruction == 0:
            raise UserError("ddgan_ufogen: weights must not be negative, nor adversarial and reconstruction both 0")
        if width < 1 or depth < 0:
            raise UserError("ddgan_ufogen: width must be 1 or more and depth 0 or more")
        self.adversarial = adversarial
        self.reconstruction = reconstruction
        self.sees = sees
        self.r1 = r1
        self.width = width
        self.depth = depth

    def setup(self, parts: Parts) -> None:
        """Take the generator, and build its discriminator.

        Raises:
            UserError: the generator has no levels, or its steps are none that the discriminator can be shown.
        """
        super().setup(parts)
        student: Any = parts.student
        self.draws_posterior = isinstance(student, PosteriorSteps)
        if not self.draws_posterior and getattr(student, "rule", None) != "renoise":
            raise UserError("ddgan_ufogen: steps are drawn: student: {name: posterior_steps} or {rule: renoise}")
        if self.sees == "pair" and not self.draws_posterior:
            raise UserError(
                "ddgan_ufogen: a point that is noised anew says nothing of the one above: take sees: point, or "
                "student: {name: posterior_steps}"
            )
        self.takes_latent = bool(getattr(student, "latent", False))
        self.ladder: tuple[float, ...] = (*student.levels, 0.0)
        if self.adversarial > 0:
            sigma_data = float(getattr(student.net, "sigma_data", 0.5))
            self.learners[HEAD] = Discriminator(
                self.shape, self.width, self.depth, sigma_data, self.classes, pairs=self.sees == "pair"
            )

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The discriminator, then the generator."""
        if HEAD in self.learners:
            yield Update(HEAD, partial(self.telling_apart, batch, clock))
        yield Update("student", partial(self.terms, batch, clock))

    # -- steps ---------------------------------------------------------------------------------------------------------

    def real_step(self, batch: Batch, clock: Clock, name: str) -> Step:
        """Noised clean samples at a random level of the student's, and at the next."""
        ids = batch["id"]
        x0, label = self.clean(batch, clock, name)
        k = (clock.uniform(ids, (1,), f"{name} level").squeeze(1) * (len(self.ladder) - 1)).long()
        ladder = torch.tensor(self.ladder, dtype=x0.dtype, device=x0.device)
        now, then = ladder[k], ladder[k + 1]
        lower = x0 + like(then, x0) * clock.normal(ids, self.shape, f"{name} lower").to(x0)
        more = like(torch.sqrt(now**2 - then**2), x0)
        return Step(x0, lower + more * clock.normal(ids, self.shape, f"{name} upper").to(x0), lower, now, then, label)

    def drawn_step(self, real: Step, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor]:
        """The generator's clean samples and lower points, from the upper points of real steps."""
        given = {}
        if self.takes_latent:
            given["latent"] = clock.normal(batch["id"], self.shape, f"{name} latent").to(real.x)
        clean = self.student(real.x, real.label, at=real.now, **given)
        noise = clock.normal(batch["id"], self.shape, f"{name} noise").to(clean)
        if not self.draws_posterior:
            return clean, steps.renoise(clean, real.then, noise)
        return clean, posterior(real.x, clean, real.now, real.then, noise)

    def logit(self, lower: Tensor, real: Step, **given: bool) -> Tensor:
        """Of the lower points [B], beside the upper ones where it sees pairs."""
        beside = {"beside": real.x, "at": real.now} if self.sees == "pair" else {}
        logit: Tensor = self.learners[HEAD](lower, real.then, real.label, **beside, **given)
        return logit

    # -- the two updates -----------------------------------------------------------------------------------------------

    def telling_apart(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The discriminator's loss, and the penalty on its slope at real points."""
        real = self.real_step(batch, clock, "apart")
        with torch.no_grad():
            _, lower = self.drawn_step(real, batch, clock, "apart")
        is_fake = fake_is_fake(self.logit(lower, real))
        if self.r1 == 0:
            return {"discriminator": Term.of(real_is_real(self.logit(real.lower, real)) + is_fake)}
        is_real, penalty = self.logit(real.lower, real, penalised=True).unbind(dim=1)
        terms = {"discriminator": Term.of(real_is_real(is_real) + is_fake)}
        return {**terms, "r1": Term.of(penalty, weight=self.r1)}

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The generator's losses."""
        real = self.real_step(batch, clock, "generator")
        clean, lower = self.drawn_step(real, batch, clock, "generator")
        terms = {}
        if HEAD in self.learners:
            with frozen(self.learners[HEAD]):
                fooling = real_is_real(self.logit(lower, real))
            terms["adversarial"] = Term.of(fooling, weight=self.adversarial)
        if self.reconstruction > 0:
            terms["reconstruction"] = Term.of(squared_error(clean, real.x0), weight=self.reconstruction)
        return terms
