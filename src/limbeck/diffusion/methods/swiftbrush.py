"""SwiftBrush: variational score distillation of a guided teacher, with low-rank adapters on it as the fake score."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.generators import CRITIC, GeneratorMethod, Noised, facts_of
from limbeck.diffusion.losses import surrogate
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.models.lora import ADAPTABLE, Adapted
from limbeck.registry import register


@register("method")
class SwiftBrush(GeneratorMethod):
    """SwiftBrush (Nguyen and Tran, arXiv 2312.05239, algorithm 1): variational score distillation without pictures.

    The fake score is a copy of the teacher of which only low-rank adapters learn, so that it is right from the start
    wherever the generator is. Of guidance the teacher has its share and the fake score none. The direction is the
    difference of the two predicted noises, weighted by ``w(t) = sigma_t^2`` of a variance-preserving path, which at the
    level ``sigma`` of EDM's is ``sigma^2 / (sigma^2 + sigma_data^2)``; no sample's gradient is divided by its size.

    Levels are uniform on the Karras grid, where the paper has uniform times of its teacher's schedule, and the critic's
    loss is weighted by ``critic_weighting``, the paper's by ``snr`` (noise prediction). The generator starts as the
    teacher at its highest level where the networks are alike. With ``critic_updates: 0`` the fake score is the noise
    itself: score distillation sampling, which seeks modes.

    Args:
        guidance: of the teacher; 4.5 in the paper.
        lora_rank: of the adapters, where the recipe names no ``critic``; a recipe that names one has its own network.
        lora_alpha: they are scaled by ``lora_alpha / lora_rank``.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}
    fixed = ("lora_alpha",)

    def __init__(self, *, guidance: float = 1.0, lora_rank: int = 8, lora_alpha: float = 8.0, **rest: Any) -> None:
        super().__init__(guidance=guidance, **rest)
        if lora_rank < 1 or lora_alpha <= 0:
            raise UserError("swiftbrush: lora_rank must be 1 or more and lora_alpha above 0")
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha

    def setup(self, parts: Parts) -> None:
        """As all generators', with the teacher's unit of noise levels."""
        super().setup(parts)
        self.unit = float(facts_of(self.teacher.module)["sigma_data"] or 1.0)

    def build_critic(self, parts: Parts) -> nn.Module:
        """Adapters on a copy of the teacher, unless the recipe names another network.

        Raises:
            UserError: the teacher has no layers to adapt.
        """
        teacher = self.teacher.module
        if self.critic is not None:
            return super().build_critic(parts)
        if not any(isinstance(m, ADAPTABLE) for m in teacher.modules()):
            raise UserError(
                f"{type(self).__name__.lower()}: this teacher has no layers for adapters; name a 'critic' that learns"
            )
        self.critic_sigma_data = float(facts_of(teacher)["sigma_data"] or 0.5)
        return Adapted(copy.deepcopy(teacher), self.lora_rank, self.lora_alpha)

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The surrogate of the weighted difference of predicted noises."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        real, fake = self.compared(at, samples.detach(), batch, clock)
        return {"vsd": Term.of(surrogate(samples, vsd_direction(real, fake, at.sigma, self.unit)))}

    def compared(self, at: Noised, samples: Tensor, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor]:
        """The teacher's estimate and the fake one; without a critic that is the sample, which the true noise leaves."""
        if CRITIC in self.learners:
            return self.estimates(at)
        with torch.no_grad(), self.teacher.context():
            return self.real(at.x, at.sigma, **({} if at.label is None else {"label": at.label})), samples


def vsd_direction(real: Tensor, fake: Tensor, sigma: Tensor, unit: float) -> Tensor:
    """``w (eps_real - eps_fake)`` [B, *shape] with ``w = sigma^2 / (sigma^2 + unit^2)``, of denoisers' estimates.

    At a noised point ``x`` the predicted noise is ``(x - D) / sigma``, so the difference is that of the estimates over
    ``sigma`` (arXiv 2305.16213, eq. 9, and 2312.05239); in units of ``unit``, so that it has none.
    """
    with torch.no_grad():
        return like(sigma * unit / (sigma**2 + unit**2), real) * (fake - real)
