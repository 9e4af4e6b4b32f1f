"""TDM: generators of a few deterministic steps, whose every state has the law of the teacher's trajectory."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.generators import GeneratorMethod, Noised
from limbeck.diffusion.losses import denoising_weight, matching_direction, squared_error, surrogate
from limbeck.diffusion.onwards import fresh_level, importance, score_target
from limbeck.diffusion.paths import like
from limbeck.diffusion.steps import jump
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


class Reached(NamedTuple):
    """Estimates ``samples`` at a step, the noise ``kept`` that they leave, the ``point`` that a part of it makes at the
    level ``mid`` [B], and the class."""

    samples: Tensor
    kept: Tensor
    point: Tensor
    mid: Tensor
    label: Tensor | None


class Onwards(NamedTuple):
    """A point that is noised further, with the noise that was added."""

    at: Noised
    eps: Tensor


@register("method")
class TDM(GeneratorMethod):
    """Trajectory distribution matching (Luo et al., arXiv 2503.06674).

    The generator goes from level to level along the line to its estimate (``rule: ode``). A random step of it is
    trained, the same in the whole batch, after its own earlier steps: the point that it reaches at the next level is
    noised on, and there critic and teacher are compared as in distribution matching. So each state on the way gets the
    law that the teacher's trajectory has at that level, and not only the last.

    The critic learns the estimate of the step, as in the paper, where ``importance`` corrects for noise that is not
    fresh; this is exact only for the last step, so ``critic_target: score`` offers the target whose mean is the score
    of the noised point. The number of steps is not an input of the networks, and the distance is the mean square.

    Args:
        critic_target: what the critic learns.
        importance: whether the critic's samples are weighted by how likely their whole noise is, for the target
            ``estimate``.
        middle: the level of the point that is noised on: the ``next``, or a ``random`` one down to it.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        critic_target: Literal["estimate", "score"] = "estimate",
        importance: bool = True,
        middle: Literal["next", "random"] = "next",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if self.critic_updates == 0:
            raise UserError("tdm: critic_updates must be 1 or more")
        self.critic_target = critic_target
        self.importance = importance
        self.middle = middle

    def setup(self, parts: Parts) -> None:
        """As all generators', which here are deterministic.

        Raises:
            UserError: the student puts fresh noise between its steps, or is no ``few_step`` generator.
        """
        super().setup(parts)
        student: Any = parts.student
        if not hasattr(student, "levels") or (student.nfe > 1 and student.rule != "ode"):
            raise UserError("tdm trains a deterministic generator: student: {name: few_step, rule: ode, net: {...}}")
        self.steps: tuple[float, ...] = (*student.levels, 0.0)

    # -- the trajectory ------------------------------------------------------------------------------------------------

    def position(self, sigma: Tensor) -> Tensor:
        """Where levels are on the grid, in [0, 1]: the inverse of :meth:`levels`."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((sigma.clamp(self.sigma_min, self.sigma_max) ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def reach(self, batch: Batch, clock: Clock, name: str) -> Reached:
        """What a random step of the generator reaches from fresh noise; only that step passes a gradient."""
        label = self.draw_label(batch["id"], clock, name)
        x = clock.normal(batch["id"], self.shape, f"{name} start") * self.steps[0]
        k = (self.stop(clock, name) or 1) - 1
        with torch.no_grad():
            for level, after in zip(self.steps[:k], self.steps[1:], strict=False):
                now, then = (x.new_full((len(x),), v) for v in (level, after))
                x = jump(x, self.student(x, label, at=now), now, then)
        now, then = (x.new_full((len(x),), v) for v in self.steps[k : k + 2])
        samples = self.student(x, label, at=now)
        if self.middle == "random":
            u = clock.uniform(batch["id"], (1,), f"{name} middle").squeeze(1).to(x.dtype)
            then = self.levels(self.position(then) + u * (self.position(now) - self.position(then)))
        kept = (x - samples) / like(now, x)
        return Reached(samples, kept, samples + like(then, x) * kept, then, label)

    def onwards(self, reached: Reached, batch: Batch, clock: Clock, name: str, *, low: float, high: float) -> Onwards:
        """The point noised to a random level above it, within positions of the grid, without gradient."""
        u = clock.uniform(batch["id"], (1,), f"{name} level").squeeze(1).to(reached.mid.dtype)
        from_here = torch.where(reached.mid > 0, self.position(reached.mid), 0.0).clamp(low, high)
        # Where the point is as high as the highest level, a little room is left for noise.
        sigma = torch.maximum(self.levels(from_here + u * (high - from_here)), reached.mid * 1.01)
        eps = clock.normal(batch["id"], self.shape, f"{name} noise").to(reached.point.dtype)
        x = reached.point.detach() + like(fresh_level(sigma, reached.mid), eps) * eps
        return Onwards(Noised(x, sigma, reached.label), eps)

    # -- the two updates -----------------------------------------------------------------------------------------------

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Distribution matching at the noised point of a random step."""
        reached = self.reach(batch, clock, "generator")
        at, _ = self.onwards(reached, batch, clock, "generator", low=self.t_min, high=self.t_max)
        direction = matching_direction(reached.samples, *self.estimates(at))
        return {"trajectory": Term.of(surrogate(reached.samples, direction))}

    def critic_loss(self, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted error [B] of the critic at noised points."""
        with torch.no_grad():
            reached = self.reach(batch, clock, name)
        at, eps = self.onwards(reached, batch, clock, name, low=0.0, high=1.0)
        weight = denoising_weight(at.sigma, self.critic_weighting, self.critic_sigma_data)
        if self.critic_target == "estimate":
            if self.importance:
                weight = weight * importance(reached.kept, eps, at.sigma, reached.mid)
            return weight * squared_error(self.fake(at), reached.samples)
        fresh = fresh_level(at.sigma, reached.mid)
        target = score_target(at.x, eps, at.sigma, fresh)
        return weight * (fresh / at.sigma) ** 2 * squared_error(self.fake(at), target)
