"""SNOOPI: variational score distillation with a random scale of guidance in the teacher's and in the fake score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.generators import CRITIC, Noised
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.methods.swiftbrush import SwiftBrush
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SNOOPI(SwiftBrush):
    """Proper guidance in one-step distillation, PG-SB (arXiv 2412.02687), on SwiftBrush.

    How strongly the teacher ought to be guided differs from teacher to teacher, and one strength for all samples makes
    training fragile. So each sample draws its own, and it guides both scores. Where the two networks agree, so do they
    at every strength: the generator's goal is then the conditional law itself and no guided one, while the strength
    decides how much more the class weighs than what all classes share on the way there.

    The fake score has to know unconditional samples too, so a share of its samples hides the class. The paper's range
    of strengths depends on the teacher. Its negative prompts without training (NASA) are no part of the method: see
    :mod:`limbeck.diffusion.negatives`, for any generator with cross-attention.

    Args:
        guidance: the lowest strength that is drawn.
        guidance_max: the highest.
        drop_label: share of the critic's samples whose class is hidden.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}
    fixed = ("lora_alpha",)

    def __init__(
        self, *, guidance: float = 1.0, guidance_max: float = 5.0, drop_label: float = 0.1, **rest: Any
    ) -> None:
        super().__init__(guidance=guidance, **rest)
        if self.critic_updates == 0:
            raise UserError("snoopi: critic_updates must be 1 or more: it guides the fake score as well")
        if guidance > guidance_max or not 0 <= drop_label <= 1:
            raise UserError("snoopi: guidance <= guidance_max and drop_label from 0 to 1 must hold")
        self.guidance_max = guidance_max
        self.drop_label = drop_label

    def setup(self, parts: Parts) -> None:
        """As SwiftBrush.

        Raises:
            UserError: there are no classes to guide by.
        """
        super().setup(parts)
        if self.classes is None:
            raise UserError("snoopi is about guidance by classes: give student and teacher 'classes'")

    def compared(self, at: Noised, samples: Tensor, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor]:
        """The two estimates, both at the strength that each sample draws."""
        u = clock.uniform(batch["id"], (1,), "guidance").squeeze(1).to(samples.dtype)
        scale = like(self.guidance + u * (self.guidance_max - self.guidance), samples)
        label = torch.full_like(at.sigma, -1, dtype=torch.long) if at.label is None else at.label
        with torch.no_grad(), self.teacher.context():
            real = Guided(self.teacher.module, scale)(at.x, at.sigma, label)
            return real, Guided(self.learners[CRITIC], scale)(at.x, at.sigma, label)

    def denoising(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the critic, with the class hidden from it for a share of the samples."""
        if label is not None:
            hidden = clock.uniform(batch["id"], (1,), f"{name} hidden").squeeze(1) < self.drop_label
            label = torch.where(hidden, -1, label)
        return super().denoising(samples, label, batch, clock, name)
