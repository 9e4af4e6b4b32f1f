"""BOOT: a network learns from noise alone how the clean part of the teacher's trajectory grows out of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.flows import need_jumps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class BOOT(TrajectoryMethod):
    """Data-free distillation with bootstrapping (Gu et al., arXiv 2306.05544).

    The state of a trajectory that began in the noise eps is ``x = y + sigma eps``, and its *signal* y, which is
    smooth, obeys ``dy / dlog sigma = y - D(y + sigma eps, sigma)``, the signal-ODE. The network sees eps and the level
    and never a state: ``g(eps, sigma)`` is y, and ``g(eps, 0)`` the sample. At a level it must give what one step of
    the signal-ODE makes of its own answer at the level above, and at the highest level the teacher's estimate. So
    neither data nor samples of the teacher are needed.

    The student is a two-level network of one step (``net: {jumps: true}``, ``rule: map``): eps enters as a point of the
    highest level, which never changes, and the level of the answer as the one that a jump goes to. Its jump to 0 is
    ``g(eps, 0)``, so the student samples as it was trained.

    What differs: levels are those of the Karras grid, ``delta`` a share of it, and the last step goes to 0; all levels
    weigh alike, and the paper's factor ``1 / delta^2`` is left to ``boundary_weight``. The paper's boundary, ``y = D``
    at the highest level, is kept, though ``y = 0`` would start the flow on the noise itself: it starts at ``D + sigma
    eps``, which has the spread of noised data.

    Args:
        delta: width of a step, as a share of the grid.
        boundary_weight: of the error at the highest level, without which any start of the flow would do.
        order: of a step: ``euler`` is DDIM, the exponential Euler step of the signal-ODE; ``heun`` EDM's.
        momentum: of the slow copy that gives the answer above; 0 takes the network itself, without gradient.
        rho: curvature of the noise grid.
        guidance: scale of classifier-free guidance of the teacher, for classes; 1 is none.
        from_teacher: start the network as a copy of the teacher where it has its layers.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = False
    fixed = ("momentum",)
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        delta: float = 0.04,
        boundary_weight: float = 1.0,
        order: Literal["euler", "heun"] = "euler",
        momentum: float = 0.0,
        rho: float = 7.0,
        guidance: float = 1.0,
        from_teacher: bool = True,
    ) -> None:
        super().__init__(rho=rho, guidance=guidance, from_teacher=from_teacher)
        if not 0 < delta <= 1:
            raise UserError(f"boot: delta must be above 0 and at most 1, not {delta}")
        self.delta = delta
        self.boundary_weight = boundary_weight
        self.order: steps.Order = order
        self.momentum = momentum

    def setup(self, parts: Parts) -> None:
        """Take the student.

        Raises:
            UserError: it does not take a second level, or samples in several steps.
        """
        super().setup(parts)
        need_jumps(parts)
        student: Any = parts.student
        if getattr(student, "nfe", 1) != 1:
            raise UserError(f"boot: the network sees noise alone, so it samples in one step: nfe: 1, not {student.nfe}")

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """One step of the signal-ODE, and the highest level."""
        ids = batch["id"]
        eps = clock.normal(ids, self.shape, "noise")
        label = self.draw_label(ids, clock, "boot")
        now, then = self.neighbours(clock.uniform(ids, (1,), "level").squeeze(1))
        target = self.stepped(eps, self.signal(eps, now, label, lagging=True), now, then, label)
        errors = squared_error(self.signal(eps, then, label), target)
        top = torch.full_like(now, self.sigma_max)
        start = squared_error(self.signal(eps, top, label), self.denoised(self.sigma_max * eps, top, label))
        return {"bootstrap": Term.of(errors), "boundary": Term.of(start, weight=self.boundary_weight)}

    def neighbours(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Levels at positions ``u`` [B] of the grid, and those a step below, 0 after the last."""
        below = u - self.delta
        then = self.levels(below.clamp_min(0))
        return self.levels(u), torch.where(below > 0, then, torch.zeros_like(then))

    def signal(self, eps: Tensor, level: Tensor, label: Tensor | None, *, lagging: bool = False) -> Tensor:
        """``g(eps, level)``; ``lagging``, of what gives targets."""
        call = self.lagging if lagging else self.network
        return call(self.sigma_max * eps, torch.full_like(level, self.sigma_max), label, to=level)

    @torch.no_grad()
    def stepped(self, eps: Tensor, signal: Tensor, now: Tensor, then: Tensor, label: Tensor | None) -> Tensor:
        """The signal that the teacher's solver makes of the one at ``now``: by Euler, ``D + (then / now) (y - D)``."""
        state = signal + like(now, eps) * eps

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoised(x, sigma, label)

        arrived = steps.step(denoise, state, now, then, order=self.order)
        return arrived - like(then, eps) * eps
