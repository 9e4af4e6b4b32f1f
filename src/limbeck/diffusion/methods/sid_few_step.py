"""Few-step SiD: score identity distillation of generators of several steps, with guidance in four places."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.generators import CRITIC, Noised
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.losses import denoising_weight, squared_error
from limbeck.diffusion.methods.sid import SiD
from limbeck.engine.method import Batch, Clock, Parts, frozen
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SiDFewStep(SiD):
    """Few-step diffusion via score identity distillation (Zhou et al., arXiv 2505.12674).

    One network serves all steps of the generator (``student: {name: few_step, nfe: 4}``). The estimate after a random
    step, the same in the whole batch, enters the loss, so that it is the uniform mixture of all steps' laws that is
    matched to the teacher's; what comes before that step is the generator's own and takes no gradient.

    Guidance has four scales: of the critic while it is trained, of the critic in the generator's two uses of it (one
    scale here), and of the teacher (``guidance``). Long and short guidance has all of them at one scale above 1;
    *zero-CFG* has the teacher without guidance and the critic without the class, ``critic_guidance: 0`` and
    ``fake_guidance: 0``; *anti-CFG* has negative scales there.

    Args:
        critic_guidance: scale of guidance of the critic while it is trained; 1 trains it as it is.
        fake_guidance: scale of guidance of the critic in the generator's loss.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, critic_guidance: float = 1.0, fake_guidance: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0:
            raise UserError("sid_few_step: critic_updates must be 1 or more")
        self.critic_guidance = critic_guidance
        self.fake_guidance = fake_guidance

    def setup(self, parts: Parts) -> None:
        """As all generators'.

        Raises:
            UserError: the critic is to be guided, and there are no classes.
        """
        super().setup(parts)
        if self.classes is None and (self.critic_guidance != 1 or self.fake_guidance != 1):
            raise UserError("sid_few_step: critic_guidance and fake_guidance need classes; without, leave them at 1")

    def guided(self, at: Noised, scale: float) -> Tensor:
        """The critic's estimate, guided."""
        if scale == 1 or at.label is None:
            return self.fake(at)
        return Guided(self.learners[CRITIC], scale)(at.x, at.sigma, at.label)

    def denoising(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the guided critic on these samples."""
        at = self.noised(samples, label, batch, clock, name)
        weight = denoising_weight(at.sigma, self.critic_weighting, self.critic_sigma_data)
        return weight * squared_error(self.guided(at, self.critic_guidance), samples)

    def estimates_through(self, at: Noised) -> tuple[Tensor, Tensor]:
        """The teacher's and the guided critic's, with a gradient in ``at.x`` alone."""
        with self.teacher.context(), frozen(self.learners[CRITIC]):
            return self.real(at.x, at.sigma, **conditioned(at.label)), self.guided(at, self.fake_guidance)
