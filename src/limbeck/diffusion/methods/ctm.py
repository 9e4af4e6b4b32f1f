"""Consistency trajectory models: jumps from any level of the teacher's trajectory to any lower one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.flows import need_jumps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import jump
from limbeck.diffusion.trajectories import SolverMethod
from limbeck.engine.method import Batch, Clock, Parts, Term, frozen
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class CTM(SolverMethod):
    """Consistency trajectory models (Kim et al., arXiv 2310.02279), without their adversarial loss.

    A jump from level t to s must arrive where the teacher's solver to a level u between and a jump from there do. Both
    ends are compared after one more jump to 0 by the network without gradient (equation 7), and jumps that go nowhere
    learn to denoise (equation 9). The student takes two levels (``net: {jumps: true}``, ``rule: map``).

    What differs: the distance is the mean square or a pseudo-Huber one (LPIPS is for photographs), the weight of
    denoising is fixed (there it balances the gradients of the last layer), and there is no discriminator.

    Args:
        levels: of the grid that t, u and s are from; s may be 0 besides.
        reach: grid steps that the solver goes at most; 17 in the paper.
        denoising: weight of the denoising loss.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, levels: int = 18, reach: int = 17, denoising: float = 1.0, **rest: Any) -> None:
        super().__init__(**rest)
        if levels < 2 or reach < 1:
            raise UserError("ctm: levels must be 2 or more, and reach 1 or more")
        self.level_count = levels
        self.reach = reach
        self.denoising = denoising

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels."""
        super().setup(parts)
        need_jumps(parts)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance of the two ways at level 0, and denoising."""
        x0, label = self.clean(batch, clock, "data")
        t, u, s = self.triple(clock.uniform(batch["id"], (3,), "levels"))
        x = x0 + like(t, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        between = self.solved(x, t, u, label)
        target = jump(between, self.lagging(between, u, label, to=s), u, s)
        arrived = jump(x, self.network(x, t, label, to=s), t, s)
        terms = {"trajectory": Term.of(self.apart(self.ended(arrived, s, label), self.ended(target, s, label)))}
        if self.denoising:
            flat = squared_error(self.network(x, t, label, to=t), x0)
            terms["denoising"] = Term.of(flat, weight=self.denoising)
        return terms

    def triple(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Levels ``t > u >= s``, each [B], from uniform numbers [B, 3]."""
        count = self.level_count - 1
        first, second, third = uniform.unbind(dim=1)
        start = 1 + (first * count).floor()
        end = (second * start).floor()
        middle = start - 1 - (third * (start - end).clamp_max(self.reach)).floor()
        t, u, s = (self.levels(k / count) for k in (start, middle, end))
        return t, u, torch.where(end == 0, torch.zeros_like(s), s)

    def ended(self, x: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """From level ``s`` to 0 by what gives targets, with a gradient in ``x`` alone; ``x`` itself where s is 0."""
        module = self.student if self.slow is None else self.slow.copy
        at = s.clamp_min(self.sigma_min)
        with frozen(module):
            end = module(x, label, at=at, to=torch.zeros_like(at))
        return torch.where(like((s > 0).to(x), x) > 0, end, x)
