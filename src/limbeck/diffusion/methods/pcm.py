"""PCM: consistency within each phase of the trajectory, for deterministic sampling in as many steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion.levels import karras
from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import jump
from limbeck.diffusion.trajectories import SolverMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class PCM(SolverMethod):
    """Phased consistency models (Wang et al., arXiv 2405.18407), without their adversarial loss.

    The student's levels cut the trajectory into phases, and a step of DDIM from any point of a phase must arrive at
    the same end of it: ``f(x, s) = D + (e / s) (x - D)`` with the phase's lower end e, which is the identity there by
    construction. Targets come from the neighbour below that the teacher's solver finds. The student makes one step of
    DDIM in each phase (``rule: ode``), without any noise between.

    Args:
        levels: grid steps of the whole trajectory, shared equally by the phases.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(self, *, levels: int = 48, **rest: Any) -> None:
        super().__init__(**rest)
        if levels < 1:
            raise UserError(f"pcm: levels must be 1 or more, not {levels}")
        self.level_count = levels

    def setup(self, parts: Parts) -> None:
        """Take the student, whose levels are where phases begin.

        Raises:
            UserError: it does not sample by DDIM.
        """
        super().setup(parts)
        own = tuple(parts.student.levels)  # type: ignore[arg-type]
        if len(own) > 1 and getattr(parts.student, "rule", "ode") != "ode":
            raise UserError("pcm: the student's steps are DDIM's: student: {rule: ode}")
        self.need_floor(parts, 0.0)  # the end of the last phase
        self.edges = (*own, self.sigma_min)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance between where two neighbours arrive at the end of their phase."""
        x0, label = self.clean(batch, clock, "data")
        higher, lower, end = self.neighbours(clock.uniform(batch["id"], (2,), "level"))
        x = x0 + like(higher, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        below = self.solved(x, higher, lower, label)
        target = jump(below, self.lagging(below, lower, label), lower, end)
        arrived = jump(x, self.network(x, higher, label), higher, end)
        return {"consistency": Term.of(self.apart(arrived, target))}

    def neighbours(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A level, the one below it and the end of their phase, from uniform numbers [B, 2]; the last end is 0."""
        phases = len(self.edges) - 1
        edges = torch.tensor(self.edges, dtype=uniform.dtype, device=uniform.device)
        phase = (uniform[:, 0] * phases).long()
        high, low = edges[phase], edges[phase + 1]
        count = max(self.level_count // phases, 1)
        place = (uniform[:, 1] * count).floor()
        higher, lower = (karras((place + k) / count, low, high, self.rho) for k in (1, 0))
        return higher, lower, torch.where(phase == phases - 1, torch.zeros_like(low), low)
