"""DMD, the first: one-step generators by matching distributions and regressing on the teacher's own samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.diffusion import samplers
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.losses import matching_direction, squared_error, surrogate
from limbeck.engine import noise
from limbeck.engine.method import Batch, Clock, Term, Update
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register

CHUNK = 1024
"""Teacher samples that are made at once."""


@register("method")
class DMD(GeneratorMethod):
    """Distribution matching distillation (Yin et al., arXiv 2311.18828).

    A step first moves the generator, along the difference of critic and teacher at its noised samples (equations 7
    and 8) and towards the teacher's own sample for the same noise (equation 9), then trains the critic on what the
    generator now gives. The pairs of noise and teacher sample are made by Heun's sampler when training starts.

    Two things differ from the paper. The distance of the regression is the mean square, since its LPIPS is for
    photographs; it is in the data's unit, which ``regression_weight`` must suit. Each critic update draws fresh
    samples instead of those of the generator's step. Levels are uniform on the Karras grid, as in the authors' later
    code for EDM teachers (DMD2).

    Args:
        critic: network of the fake score.
        critic_updates: critic steps per step of the generator (1 in the paper, 5 and more in DMD2).
        critic_weighting: of the critic's denoising loss over noise levels.
        distribution_weight: of the distribution-matching gradient; 0 (with ``critic_updates: 0``) leaves regression.
        regression_weight: of the regression on the pairs; 0 makes no pairs.
        t_min: lowest position on the noise grid at which laws are compared, in [0, 1].
        t_max: highest position on the noise grid at which laws are compared, in [0, 1].
        sigma_min: lowest noise level of the teacher.
        sigma_max: highest noise level of the teacher, where its sampler starts.
        rho: curvature of the noise grid.
        guidance: scale of classifier-free guidance of the teacher, for classes; 1 is none.
        pairs: how many pairs of noise and teacher sample to make.
        pair_steps: Heun steps for each.
        from_teacher: start student and critic as copies of the teacher where they are the same network.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression_only": {"method": {"distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        critic: ModelBlock,
        critic_updates: int = 1,
        critic_weighting: Literal["edm", "snr", "uniform"] = "edm",
        distribution_weight: float = 1.0,
        regression_weight: float = 0.25,
        t_min: float = 0.02,
        t_max: float = 0.98,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        guidance: float = 1.0,
        pairs: int = 10_000,
        pair_steps: int = 18,
        from_teacher: bool = True,
    ) -> None:
        if critic_updates < 0 or (critic_updates == 0 and distribution_weight != 0):
            raise UserError("dmd: critic_updates must be 1 or more; 0 is only for distribution_weight 0")
        if not 0 <= t_min < t_max <= 1 or not 0 < sigma_min < sigma_max:
            raise UserError("dmd: 0 <= t_min < t_max <= 1 and 0 < sigma_min < sigma_max must hold")
        if pairs < 1 or pair_steps < 1:
            raise UserError("dmd: pairs and pair_steps must be 1 or more")
        self.critic = critic
        self.critic_updates = critic_updates
        self.critic_weighting = critic_weighting
        self.distribution_weight = distribution_weight
        self.regression_weight = regression_weight
        self.t_min = t_min
        self.t_max = t_max
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        self.guidance = guidance
        self.pairs = pairs
        self.pair_steps = pair_steps
        self.from_teacher = from_teacher
        self._targets: Tensor | None = None

    @property
    def has_critic(self) -> bool:
        """Whether a fake score learns."""
        return self.critic_updates > 0

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The generator, then its critic."""
        yield Update("student", partial(self.generator_terms, batch, clock))
        for k in range(self.critic_updates):
            yield self.critic_update(batch, clock, f"critic {k}")

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching and regression; one pass of the generator serves both."""
        label = self.draw_label(batch["id"], clock, "generator")
        start = clock.normal(batch["id"], self.shape, "generator start")
        if self.regression_weight == 0:
            return {"distribution": self.distribution(self.call_student(start, label), label, batch, clock)}
        pair_start, pair_label, target = self.pair(batch, clock)
        if self.distribution_weight == 0:
            return {"regression": self.regression(self.call_student(pair_start, pair_label), target)}
        labels = None if label is None or pair_label is None else torch.cat([label, pair_label])
        samples, regressed = self.call_student(torch.cat([start, pair_start]), labels).chunk(2)
        return {
            "distribution": self.distribution(samples, label, batch, clock),
            "regression": self.regression(regressed, target),
        }

    def distribution(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Term:
        """The surrogate of the distribution-matching gradient."""
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        direction = matching_direction(samples, *self.estimates(at))
        return Term.of(surrogate(samples, direction), weight=self.distribution_weight)

    def regression(self, samples: Tensor, target: Tensor) -> Term:
        """Mean squared distance to the teacher's samples for the same noise."""
        return Term.of(squared_error(samples, target.to(samples.dtype)), weight=self.regression_weight)

    def pair(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None, Tensor]:
        """A pair for each sample of the batch: noise, class and what the teacher makes of them."""
        if self._targets is None:
            everything = torch.arange(self.pairs, device=batch["id"].device)
            self._targets = torch.cat([self.teach(ids, clock.seed) for ids in everything.split(CHUNK)])
        which = (clock.uniform(batch["id"], (1,), "pair").squeeze(1) * self.pairs).long()
        return *self.pair_start(which, clock.seed), self._targets[which]

    def pair_start(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """Noise and class of the pairs with these numbers."""
        start = noise.normal(ids, self.shape, (seed, "pair start"))
        if self.classes is None:
            return start, None
        return start, (noise.uniform(ids, (1,), (seed, "pair class")).squeeze(1) * self.classes).long()

    def teach(self, ids: Tensor, seed: int) -> Tensor:
        """The teacher's samples for the pairs with these numbers."""
        start, label = self.pair_start(ids, seed)
        with self.teacher.context():
            return samplers.sample(
                self.real,
                start,
                steps=self.pair_steps,
                sigma_min=self.sigma_min,
                sigma_max=self.sigma_max,
                rho=self.rho,
                label=label,
            ).samples
