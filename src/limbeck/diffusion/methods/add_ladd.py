"""Adversarial diffusion distillation: a discriminator on the teacher's own features, beside the teacher's estimate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.base import Pairs, conditioned
from limbeck.diffusion.discriminators import Heads, hinge_fake, hinge_real
from limbeck.diffusion.gan import HEAD, Features
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class ADDLADD(Pairs):
    """Adversarial diffusion distillation, ADD (Sauer et al., arXiv 2311.17042) and LADD (arXiv 2403.12015).

    The student is called at a few fixed noise levels, the first of them that of pure noise, on noised real samples. Its
    estimates must look real to a discriminator, heads on features of a frozen network trained by hinge losses with R1
    on the features, and in ADD they must agree with what the teacher makes of them when they are noised again: ``c
    |x - sg D(sg x + sigma eps)|^2`` with ``c = 1 / sqrt(1 + sigma^2)``, the signal's share (its equation 5).

    The features are the teacher's, of samples that are noised again, with levels log-normal, which is LADD's
    logit-normal law on the straight path. LADD is ``distillation_weight: 0`` with ``samples: teacher``; ADD takes
    ``samples: data``, and has a vision model in place of the teacher's features, which is not offered here. The heads
    see the noise level and the class through the features alone, and the student's levels are drawn uniformly.

    The student is a ``few_step`` generator with ``rule: renoise``, the teacher a network.

    Args:
        gan_weight: of the adversarial loss; 0 leaves the discriminator out.
        distillation_weight: of the distance to the teacher's estimates; 2.5 in ADD, 0 in LADD.
        samples: what is real: the ``data``, where the recipe has some, or the ``teacher``'s own samples.
        r1: weight of the gradient penalty on the heads' real features.
        mean: of the logarithm of the levels at which the discriminator looks; LADD's best is 1.
        std: standard deviation of that logarithm.
        head_width: hidden units of the heads.
        features: paths of the teacher's modules that have a head each; by default the network's own choice.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"distillation": {"method": {"gan_weight": 0.0, "distillation_weight": 2.5}}}

    def __init__(
        self,
        *,
        gan_weight: float = 1.0,
        distillation_weight: float = 2.5,
        samples: Literal["data", "teacher"] = "data",
        r1: float = 1e-5,
        mean: float = 1.0,
        std: float = 1.0,
        head_width: int = 128,
        features: tuple[str, ...] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if min(gan_weight, distillation_weight, r1) < 0 or gan_weight + distillation_weight == 0 or head_width < 1:
            raise UserError(
                "add_ladd: weights must not be negative, nor gan_weight and distillation_weight both 0, and head_width "
                "must be 1 or more"
            )
        self.gan_weight = gan_weight
        self.distillation_weight = distillation_weight
        self.samples = samples
        self.r1 = r1
        self.mean = mean
        self.std = std
        self.head_width = head_width
        self.features = features

    def setup(self, parts: Parts) -> None:
        """Take the student, and build heads on the teacher's features.

        Raises:
            UserError: the student's steps are not drawn, or the teacher does not say where its features are.
        """
        super().setup(parts)
        student: Any = parts.student
        if not hasattr(student, "levels") or (student.nfe > 1 and student.rule != "renoise"):
            raise UserError("add_ladd trains estimates at fixed levels: student: {name: few_step, rule: renoise}")
        self.ladder: tuple[float, ...] = tuple(student.levels)
        if self.gan_weight > 0:
            module = self.teacher.module
            self.looks = [Features(module, path) for path in self.features or (None,)]
            self.learners[HEAD] = Heads([look.width(self.shape) for look in self.looks], self.head_width)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The discriminator, then the student."""
        if HEAD in self.learners:
            yield Update(HEAD, partial(self.telling_apart, batch, clock))
        yield Update("student", partial(self.terms, batch, clock))

    # -- the pieces ----------------------------------------------------------------------------------------------------

    def real_samples(self, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor | None]:
        """Clean samples and their class, as the recipe says."""
        if self.samples == "teacher":
            batch = {key: value for key, value in batch.items() if key not in ("input", "label")}
        return self.clean(batch, clock, name)

    def estimated(self, x0: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Tensor:
        """The student's estimates of clean samples from one of its levels."""
        k = (clock.uniform(batch["id"], (1,), f"{name} step").squeeze(1) * len(self.ladder)).long()
        sigma = torch.tensor(self.ladder, dtype=x0.dtype, device=x0.device)[k]
        eps = clock.normal(batch["id"], self.shape, f"{name} start").to(x0)
        estimate: Tensor = self.student(x0 + like(sigma, x0) * eps, label, at=sigma)
        return estimate

    def seen(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> list[Tensor]:
        """The teacher's features of samples that are noised again; a gradient passes to them."""
        z = clock.normal(batch["id"], (1,), f"{name} look").squeeze(1).to(samples)
        sigma = log_normal(z, self.mean, self.std).clamp(self.sigma_min, self.sigma_max)
        noisy = samples + like(sigma, samples) * clock.normal(batch["id"], self.shape, f"{name} noise").to(samples)
        found: dict[int, Tensor] = {}

        def call(x: Tensor, level: Tensor, at: int) -> None:
            # Each look runs the looks before it, so that the teacher itself runs once.
            if at == 0:
                self.teacher.module(x, level, **conditioned(label))
            else:
                found[at - 1] = self.looks[at - 1](call, x, level, at - 1)

        with self.teacher.context():
            last = len(self.looks) - 1
            found[last] = self.looks[last](call, noisy, sigma, last)
        return [found[k] for k in range(len(self.looks))]

    # -- the two updates -----------------------------------------------------------------------------------------------

    def telling_apart(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The hinge loss of the heads, and the penalty on their slopes at real features."""
        with torch.no_grad():
            x0, label = self.real_samples(batch, clock, "apart")
            fake = self.estimated(x0, label, batch, clock, "apart")
            true_seen, fake_seen = (self.seen(x, label, batch, clock, "apart") for x in (x0, fake))
        heads = self.learners[HEAD]
        is_real, penalty = heads(*true_seen, penalised=True).unbind(dim=2)
        apart = hinge_real(is_real) + hinge_fake(heads(*fake_seen))
        return {
            "discriminator": Term.of(apart.mean(dim=1)),
            "r1": Term.of(penalty.mean(dim=1), weight=self.r1),
        }

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The student's losses."""
        with torch.no_grad():
            x0, label = self.real_samples(batch, clock, "student")
        samples = self.estimated(x0, label, batch, clock, "student")
        terms = {}
        if HEAD in self.learners:
            with frozen(self.learners[HEAD]):
                logits = self.learners[HEAD](*self.seen(samples, label, batch, clock, "student"))
            terms["adversarial"] = Term.of(-logits.mean(dim=1), weight=self.gan_weight)
        if self.distillation_weight > 0:
            distance = self.distance(samples, label, batch, clock)
            terms["distillation"] = Term.of(distance, weight=self.distillation_weight)
        return terms

    def distance(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        """``c |x - D|^2`` [B], D the teacher's estimate of the samples when they are noised again."""
        u = clock.uniform(batch["id"], (1,), "teacher level").squeeze(1).to(samples)
        sigma = self.levels(u)
        with torch.no_grad(), self.teacher.context():
            noisy = samples + like(sigma, samples) * clock.normal(batch["id"], self.shape, "teacher noise").to(samples)
            target = self.real(noisy, sigma, **conditioned(label))
        return squared_error(samples, target) / torch.sqrt(1 + sigma**2)
