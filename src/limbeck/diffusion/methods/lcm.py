"""LCM: consistency distillation of the guided flow, with a solver that skips steps and a network told of guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.base import conditioned
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import SolverMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class LCM(SolverMethod):
    """Latent consistency models (Luo et al., arXiv 2310.04378, algorithm 1) and LCM-LoRA (arXiv 2311.05556).

    Consistency distillation of the *guided* flow, the strength of guidance drawn for each sample and told to the
    network (equation 9), between levels of a fine grid that lie ``skip`` steps apart (equation 12): a long way for the
    solver, but few pairs from the top of the grid to its end. The paper's ``w`` is ``scale - 1``.

    LCM-LoRA is the same of a student with adapters at one strength (``net: {name: lora, base: ...}``, ``scale_min`` as
    ``scale_max``), which it need not be told.

    What differs: the grid is Karras's and not that of a latent model's timesteps; levels less than ``skip`` steps from
    the lowest are paired with it, so that none is left out; the solver is Heun's unless ``order: euler`` asks for the
    paper's DDIM; and the slow copy is off unless a ``momentum`` (0.95 in the paper) is given.

    Args:
        levels: of the fine grid; 1000 in the paper.
        skip: its steps between the two levels of a pair; 20 in the paper.
        scale_min: the lowest strength of guidance.
        scale_max: the highest strength of guidance; [3, 15] for latents in the paper.
        told: whether a network that can be is told the strength; without, it learns the mean over them.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"untold": {"method": {"told": False}}}

    def __init__(
        self,
        *,
        levels: int = 200,
        skip: int = 20,
        scale_min: float = 1.0,
        scale_max: float = 5.0,
        told: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 1 <= skip < levels:
            raise UserError("lcm: skip must be 1 or more and less than levels")
        if scale_min > scale_max:
            raise UserError("lcm: scale_min <= scale_max must hold")
        self.level_count = levels
        self.skip = skip
        self.scale_min = scale_min
        self.scale_max = scale_max
        self.told = told

    def setup(self, parts: Parts) -> None:
        """Take the student, the identity at ``sigma_min``.

        Raises:
            UserError: it has no classes, or is to be told of guidance and cannot be.
        """
        super().setup(parts)
        self.need_floor(parts, self.sigma_min)
        if self.classes is None:
            raise UserError("guidance needs classes: give student and teacher 'classes'")
        self.tells = self.told and bool(getattr(parts.student.net, "guided", False))
        if self.told and not self.tells and self.scale_min < self.scale_max:
            raise UserError(
                "this student cannot be told the strength of guidance: student: {net: {guided: true}}, or one strength "
                "for all, scale_min as scale_max"
            )

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance between the answers at two levels, the lower point by the guided solver."""
        x0, label = self.clean(batch, clock, "data")
        u = clock.uniform(batch["id"], (2,), "level and scale")
        higher, lower = self.neighbours(u[:, 0])
        scale = (self.scale_min + u[:, 1] * (self.scale_max - self.scale_min)).to(x0)
        x = x0 + like(higher, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        told = {"scale": scale} if self.tells else {}
        target = self.lagging(self.guided(x, higher, lower, label, scale), lower, label, **told)
        return {"consistency": Term.of(self.apart(self.network(x, higher, label, **told), target))}

    def neighbours(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A level and the one ``skip`` steps of the grid below it, or the lowest, from uniform numbers [B]."""
        count = self.level_count - 1
        higher = (u * count).floor() + 1
        return self.levels(higher / count), self.levels((higher - self.skip).clamp_min(0) / count)

    @torch.no_grad()
    def guided(self, x: Tensor, now: Tensor, then: Tensor, label: Tensor | None, scale: Tensor) -> Tensor:
        """Where the solver arrives on the flows guided at strengths [B]."""
        with self.teacher.context():
            field = Guided(self.teacher.module, like(scale, x))
            return steps.solve(field, x, now, then, steps=self.solver_steps, order=self.order, **conditioned(label))
