"""Decoupled DMD: what guidance adds to distribution matching, and the matching itself, at noise levels of their own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.base import conditioned
from limbeck.diffusion.generators import GeneratorMethod, Noised
from limbeck.diffusion.losses import matching_direction, surrogate
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class DecoupledDMD(GeneratorMethod):
    """Decoupled distribution matching distillation (Liu et al., arXiv 2511.22677).

    With a guided teacher the direction of distribution matching is a sum: plain matching, critic less conditional
    teacher, and *augmentation*, ``guidance - 1`` times conditional less unconditional teacher. The second drives the
    generator, the first keeps its law in bounds. Each gets noise levels of its own: matching all of them, augmentation
    those above the level that the generator's sample goes to next, since what is coarser is settled (0, and so all
    levels, after the last step).

    Both are divided by the same kind of normaliser, each sample's distance to the conditional teacher's estimate at
    the term's own level; the paper does not say. The critic is never guided.

    Args:
        schedule: whether the terms draw their own levels, ``decoupled``, or augmentation takes those of matching,
            ``shared``.
        matching_weight: of distribution matching.
        augmentation_weight: of what guidance adds.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        schedule: Literal["decoupled", "shared"] = "decoupled",
        matching_weight: float = 1.0,
        augmentation_weight: float = 1.0,
        guidance: float = 2.0,
        **rest: Any,
    ) -> None:
        super().__init__(guidance=guidance, **rest)
        if self.critic_updates == 0:
            raise UserError("decoupled_dmd: critic_updates must be 1 or more")
        self.schedule = schedule
        self.matching_weight = matching_weight
        self.augmentation_weight = augmentation_weight

    def setup(self, parts: Parts) -> None:
        """As all generators'.

        Raises:
            UserError: there are no classes to guide by.
        """
        super().setup(parts)
        if self.classes is None:
            raise UserError("decoupled_dmd is about guidance by classes: give student and teacher 'classes'")

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The surrogate of both directions."""
        samples, label = self.generate(batch, clock, "generator")
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        real, _ = self.teachers_two(at)
        with torch.no_grad():
            matching = matching_direction(samples, real, self.fake(at))
        if self.schedule == "decoupled":
            low = min(max(self.settled(clock), self.t_min), self.t_max)
            at = self.noised(samples, label, batch, clock, "augmentation", low=low, high=self.t_max)
        augmentation = augmentation_direction(samples, *self.teachers_two(at), self.guidance)
        direction = self.matching_weight * matching + self.augmentation_weight * augmentation
        return {"decoupled": Term.of(surrogate(samples, direction))}

    @torch.no_grad()
    def teachers_two(self, at: Noised) -> tuple[Tensor, Tensor]:
        """The teacher's conditional and unconditional estimates, without guidance."""
        with self.teacher.context():
            module = self.teacher.module
            return module(at.x, at.sigma, **conditioned(at.label)), module(at.x, at.sigma)

    def settled(self, clock: Clock) -> float:
        """The position on the noise grid of the level that this step's sample goes to next; 0 after the last step."""
        stop = self.stop(clock, "generator")
        levels = getattr(self.student, "levels", ())
        if stop is None or stop >= len(levels):
            return 0.0
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return float((levels[stop] ** (1 / self.rho) - low) / (high - low))


def augmentation_direction(
    samples: Tensor, real: Tensor, free: Tensor, guidance: float, *, normalise: bool = True
) -> Tensor:
    """What guidance adds to the direction of distribution matching, ``-(guidance - 1) (real - free)``, [B, *shape].

    With the teacher's conditional and unconditional estimates ``real`` and ``free``; ``normalise`` divides by each
    sample's mean absolute distance to ``real``, as :func:`limbeck.diffusion.losses.matching_direction` does.
    """
    with torch.no_grad():
        direction = (guidance - 1) * (free - real)
        if normalise:
            direction = direction / like((samples - real).abs().flatten(1).mean(dim=1), samples)
        return torch.nan_to_num(direction, nan=0.0, posinf=0.0, neginf=0.0)
