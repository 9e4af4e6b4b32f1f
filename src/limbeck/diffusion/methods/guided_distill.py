"""Distillation of guided models in two stages: guidance into one call, then the sampler's steps halved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.methods.guidance_distillation import GuidanceDistillation
from limbeck.diffusion.methods.progressive_distillation import ProgressiveDistillation
from limbeck.diffusion.paths import Denoise, like
from limbeck.engine.method import Batch, Clock, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class GuidedDistill(GuidanceDistillation, ProgressiveDistillation):
    """Distillation of guided diffusion models (Meng et al., arXiv 2210.03142, algorithms 1 and 2).

    Stage one is :class:`~limbeck.diffusion.methods.guidance_distillation.GuidanceDistillation`: the network is told the
    strength of guidance and gives in one call what the teacher gives in two. Stage two is :class:`~limbeck.diffusion.
    methods.progressive_distillation.ProgressiveDistillation` of that network, round after round, with the strength as
    an input all along: one step of DDIM by the student must arrive where two by its teacher do, at any strength. The
    student asks for one when it samples (``student: {rule: ode, scale: ...}``); :func:`stochastic_samples` draws from
    it with noise.

    What differs: levels are those of the Karras grid; stage two begins at the network of stage one, never at the guided
    teacher itself; the student is trained for steps of the deterministic sampler, which the stochastic one takes two at
    a time.

    Args:
        first: share of the training for stage one; the rounds share what is left.
        rounds: how many; 0 in effect where ``first`` is 1.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"guidance_only": {"method": {"first": 1.0}}}
    dial = "first"

    def __init__(self, *, first: float = 0.5, rounds: int = 3, **rest: Any) -> None:
        super().__init__(rounds=rounds, **rest)
        if not 0 < first <= 1:
            raise UserError(f"guided_distill: first must be above 0 and at most 1, not {first}")
        self.first = first

    # -- where the training is ----------------------------------------------------------------------------------------

    def halving(self, clock: Clock) -> Clock | None:
        """The clock of stage two, or None in stage one."""
        begins = round(self.first * clock.total)
        if clock.step < begins:
            return None
        return replace(clock, step=clock.step - begins, total=clock.total - begins)

    def round(self, clock: Clock) -> int:
        """Which round it is, from 0; -1 in stage one."""
        stage = self.halving(clock)
        return -1 if stage is None else super().round(stage)

    def pace(self, clock: Clock) -> float:
        """Stage one and each round anneal the learning rate anew."""
        stage = self.halving(clock)
        return clock.step / max(round(self.first * clock.total), 1) if stage is None else super().pace(stage)

    def before_step(self, clock: Clock) -> Collection[str]:
        """Between two rounds, and before the first, the student becomes the teacher."""
        if clock.step > 0 and self.round(clock) != self.round(replace(clock, step=clock.step - 1)):
            assert self.slow is not None
            self.slow.follow(0.0)
        return ()

    # -- what is learnt ------------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The error to the guided teacher, and later to two steps of the network before the round."""
        if self.halving(clock) is None:
            return super().terms(batch, clock)
        ids = batch["id"]
        x0, label = self.clean(batch, clock, "data")
        now, middle, then = self.three(clock.uniform(ids, (1,), "level").squeeze(1), clock)
        x = x0 + like(now, x0) * clock.normal(ids, self.shape, "noise").to(x0)
        u = clock.uniform(ids, (1,), "scale").squeeze(1)
        told = {"scale": self.scale_min + u * (self.scale_max - self.scale_min)} if self.told else {}
        target = self.two_steps(x, now, middle, then, label, **told)
        errors = squared_error(self.network(x, now, label, **told), target)
        return {"halving": Term.of(self.weight(now) * errors)}

    def two_steps(
        self, x: Tensor, now: Tensor, middle: Tensor, then: Tensor, label: Tensor | None, **told: Tensor
    ) -> Tensor:
        """The clean sample for which one step of DDIM arrives where two of the round's teacher do, told as it is."""
        half = steps.jump(x, self.lagging(x, now, label, **told), now, middle)
        end = steps.jump(half, self.lagging(half, middle, label, **told), middle, then)
        return steps.target_of(x, end, now, then)


@torch.no_grad()
def stochastic_samples(denoise: Denoise, noise: Tensor, levels: Sequence[float], **condition: Tensor) -> Tensor:
    """Samples [B, *shape] by two steps ahead and one back with noise (arXiv 2210.03142, section 3.3, figure 4).

    From each level a step of DDIM goes to the one after the next, and fresh noise brings the sample back to the next;
    the last two steps go to 0. It calls the network as often as the deterministic sampler does.

    Args:
        denoise: the network, which ``condition`` tells the class and the strength of guidance.
        noise: standard normal [B, levels, *shape]; the first is the start, the last is not used.
        levels: falling noise levels.
        **condition: for each sample.
    """
    x = noise[:, 0] * levels[0]
    grid = [*levels, 0.0, 0.0]
    for k in range(len(levels)):
        now, following, then = (x.new_full((len(x),), level) for level in grid[k : k + 3])
        x = steps.jump(x, denoise(x, now, **condition), now, then)
        if k + 1 < len(levels):
            x = x + like(torch.sqrt(following**2 - then**2), x) * noise[:, k + 1]
    return x
