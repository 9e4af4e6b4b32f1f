"""Guidance distillation: one network, one call, for every strength of classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.levels import log_normal
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class GuidanceDistillation(TrajectoryMethod):
    """The first stage of Meng et al. (arXiv 2210.03142, eq. 1): the student is told the strength of guidance.

    It learns ``D(x, sigma, label, scale) = D_null + scale (D_label - D_null)`` for strengths drawn anew for each
    sample, and so costs one call where guidance costs two. The paper's ``w`` is ``scale - 1``. Its weight of the noise
    levels, ``max(SNR, 1)``, is kept.

    Args:
        scale_min: the lowest strength.
        scale_max: the highest strength; [1, 5] for pixels and [3, 15] for latents in the paper.
        mean: of the logarithm of the noise levels.
        std: standard deviation of that logarithm.
        told: whether the network is told the strength; without, it learns the mean over them.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"untold": {"method": {"told": False}}}
    dial = "std"

    def __init__(
        self,
        *,
        scale_min: float = 1.0,
        scale_max: float = 5.0,
        mean: float = -0.5,
        std: float = 1.5,
        told: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if scale_min > scale_max or std <= 0:
            raise UserError("guidance_distillation: scale_min <= scale_max and std > 0 must hold")
        self.scale_min = scale_min
        self.scale_max = scale_max
        self.mean = mean
        self.std = std
        self.told = told

    def setup(self, parts: Parts) -> None:
        """Take the student.

        Raises:
            UserError: it has no classes, or cannot be told of guidance.
        """
        super().setup(parts)
        if self.classes is None:
            raise UserError("guidance needs classes: give student and teacher 'classes'")
        if not getattr(parts.student.net, "guided", False):
            raise UserError("this student cannot be told the strength of guidance: student: {net: {guided: true}}")

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted error to the guided teacher."""
        ids = batch["id"]
        x0, label = self.clean(batch, clock, "data")
        z = clock.normal(ids, (1,), "level").squeeze(1)
        sigma = log_normal(z, self.mean, self.std).clamp(self.sigma_min, self.sigma_max)
        x = x0 + like(sigma, x0) * clock.normal(ids, self.shape, "noise")
        u = clock.uniform(ids, (1,), "scale").squeeze(1)
        scale = self.scale_min + u * (self.scale_max - self.scale_min)
        target = self.guided(x, sigma, label, scale)
        answer = self.network(x, sigma, label, **({"scale": scale} if self.told else {}))
        return {"guidance": Term.of((1 / sigma**2).clamp_min(1) * squared_error(answer, target))}

    @torch.no_grad()
    def guided(self, x: Tensor, sigma: Tensor, label: Tensor | None, scale: Tensor) -> Tensor:
        """The teacher's estimate at strengths [B]."""
        with self.teacher.context():
            return Guided(self.teacher.module, like(scale, x))(x, sigma, **conditioned(label))
