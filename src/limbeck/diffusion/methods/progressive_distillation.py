"""Progressive distillation: a sampler's steps are halved, round after round."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion import steps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.diffusion.trajectories import TrajectoryMethod
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.engine.momentum import MovingAverage
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class ProgressiveDistillation(TrajectoryMethod):
    """Progressive distillation (Salimans and Ho, arXiv 2202.00512, algorithm 2).

    In each round one step of DDIM by the student must arrive where two by its teacher do, which gives the clean sample
    that it has to name (equation 43, appendix G). Then the student, as it is, becomes the teacher of the next round,
    which has half the steps. Rounds share the training equally, the last has the steps of the student (``nfe``, with
    ``rule: ode``), and the learning rate anneals in each.

    What differs: levels are those of the Karras grid, not of the cosine path, and all rounds are of the same length.

    Args:
        rounds: how many; the first has ``2^(rounds - 1) nfe`` steps, distilled from twice as many of the teacher.
        weighting: of the error of the clean sample: ``truncated`` is max(SNR, 1), ``snr_plus_one`` SNR + 1.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        rounds: int = 4,
        weighting: Literal["truncated", "snr_plus_one"] = "truncated",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if rounds < 1:
            raise UserError(f"progressive_distillation: rounds must be 1 or more, not {rounds}")
        self.rounds = rounds
        self.weighting = weighting

    def setup(self, parts: Parts) -> None:
        """Take the student, and a copy of it to be the teacher of later rounds.

        Raises:
            UserError: the student does not sample by DDIM.
        """
        super().setup(parts)
        self.nfe = int(getattr(parts.student, "nfe", 1))
        if self.nfe > 1 and getattr(parts.student, "rule", "ode") != "ode":
            raise UserError("progressive_distillation: the student's steps are DDIM's: student: {rule: ode}")
        self.slow = MovingAverage(parts.student)
        self.frozen["target"] = self.slow

    def round(self, clock: Clock) -> int:
        """Which round it is, from 0."""
        return clock.step * self.rounds // max(clock.total, 1)

    def pace(self, clock: Clock) -> float:
        """Each round anneals the learning rate anew."""
        return clock.progress * self.rounds % 1

    def before_step(self, clock: Clock) -> Collection[str]:
        """Between two rounds the student becomes the teacher."""
        if clock.step > 0 and self.round(clock) != (clock.step - 1) * self.rounds // max(clock.total, 1):
            assert self.slow is not None
            self.slow.follow(0.0)
        return ()

    def after_step(self, clock: Clock) -> None:
        """The teacher of a round stays as it is."""

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The weighted error of the clean sample that makes one step of two."""
        x0, label = self.clean(batch, clock, "data")
        now, middle, then = self.three(clock.uniform(batch["id"], (1,), "level").squeeze(1), clock)
        x = x0 + like(now, x0) * clock.normal(batch["id"], self.shape, "noise").to(x0)
        target = self.target(x, now, middle, then, label, first=self.round(clock) == 0)
        errors = squared_error(self.network(x, now, label), target)
        return {"halving": Term.of(self.weight(now) * errors)}

    def three(self, u: Tensor, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """A level of the round's grid, the next one, which is 0 after the last, and the one between."""
        count = self.nfe * 2 ** (self.rounds - 1 - self.round(clock))
        place = (u * count).floor() + 1
        now, middle, then = (self.levels((place - back) / count) for back in (0.0, 0.5, 1.0))
        return now, middle, torch.where(place == 1, torch.zeros_like(then), then)

    def target(
        self, x: Tensor, now: Tensor, middle: Tensor, then: Tensor, label: Tensor | None, *, first: bool
    ) -> Tensor:
        """The clean sample for which one step of DDIM arrives where two of the round's teacher do."""
        teacher = self.denoised if first else self.lagging
        half = steps.jump(x, teacher(x, now, label), now, middle)
        return steps.target_of(x, steps.jump(half, teacher(half, middle, label), middle, then), now, then)

    def weight(self, sigma: Tensor) -> Tensor:
        """By the signal-to-noise ratio."""
        snr = 1 / sigma**2
        return snr.clamp_min(1) if self.weighting == "truncated" else snr + 1
