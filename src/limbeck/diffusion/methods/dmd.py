"""DMD, the first: one-step generators by matching distributions and regressing on the teacher's own samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import Pairs
from limbeck.diffusion.generators import GeneratorMethod
from limbeck.diffusion.losses import squared_error
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class DMD(GeneratorMethod, Pairs):
    """Distribution matching distillation (Yin et al., arXiv 2311.18828).

    A step first moves the generator, along the difference of critic and teacher at its noised samples (equations 7
    and 8) and towards the teacher's own sample for the same noise (equation 9), then trains the critic on what the
    generator now gives. The pairs of noise and teacher sample are made by Heun's sampler when training starts.

    Two things differ from the paper. The distance of the regression is the mean square, since its LPIPS is for
    photographs; it is in the data's unit, which ``regression_weight`` must suit. Each critic update draws fresh
    samples instead of those of the generator's step. Levels are uniform on the Karras grid, as in the authors' later
    code for EDM teachers (DMD2).

    Args:
        distribution_weight: of the distribution-matching gradient; 0 (with ``critic_updates: 0``) leaves regression.
        regression_weight: of the regression on the pairs; 0 makes no pairs.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression_only": {"method": {"distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, distribution_weight: float = 1.0, regression_weight: float = 0.25, **rest: Any) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0 and distribution_weight != 0:
            raise UserError("dmd: critic_updates must be 1 or more; 0 is only for distribution_weight 0")
        self.distribution_weight = distribution_weight
        self.regression_weight = regression_weight

    def setup(self, parts: Parts) -> None:
        """As all generators', which here have a single step.

        Raises:
            UserError: the student has more.
        """
        super().setup(parts)
        if getattr(parts.student, "nfe", 1) != 1:
            raise UserError("dmd regresses on pairs of noise and sample: its student makes one step (nfe: 1)")

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
        return Term.of(self.matching(samples, label, batch, clock), weight=self.distribution_weight)

    def regression(self, samples: Tensor, target: Tensor) -> Term:
        """Mean squared distance to the teacher's samples for the same noise."""
        return Term.of(squared_error(samples, target.to(samples.dtype)), weight=self.regression_weight)
