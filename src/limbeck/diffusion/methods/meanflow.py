"""MeanFlow: one-step generators that learn the mean velocity between any two times."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from limbeck.diffusion.flows import FlowMethod, mean_velocity_target, need_jumps
from limbeck.diffusion.losses import adaptive, squared_error
from limbeck.diffusion.steps import tangent
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.registry import register


@register("method")
class MeanFlow(FlowMethod):
    """Mean flows (Geng et al., arXiv 2505.13447, algorithm 1), by distillation or from data.

    The mean velocity u from time t down to r obeys ``u = v - (t - r) du/dt`` along the flow (equation 6). The right
    side, with the derivative of the network itself by forward mode, is the target; for ``r = t`` that is flow matching.
    The student takes two levels (``net: {jumps: true}``, ``rule: map``). ``guidance`` is of the teacher's velocity;
    the paper's guidance inside the target of training, by the network's own answers, is left out.

    Args:
        mean: of the logit of the times.
        std: standard deviation of that logit.
        same: share of the samples with ``r = t``.
        power: p of the adaptive weight ``1 / (|d|^2 + 0.001)^p``.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self, *, mean: float = -0.4, std: float = 1.0, same: float = 0.75, power: float = 1.0, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.mean = mean
        self.std = std
        self.same = same
        self.power = power

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels."""
        super().setup(parts)
        need_jumps(parts)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The distance of the mean velocity to what its own derivative says it must be."""
        ids = batch["id"]
        logits = self.mean + self.std * clock.normal(ids, (2,), "times")
        times = self.within_range(torch.sigmoid(logits))
        t, r = times.max(dim=1).values, times.min(dim=1).values
        r = torch.where(clock.uniform(ids, (1,), "same").squeeze(1) < self.same, t, r)
        z, velocity, label = self.on_line(batch, clock, t)
        answer = self.average(z, t, r, label)
        _, change = tangent(lambda z, t: self.average(z, t, r, label), (z, t), (velocity, torch.ones_like(t)))
        errors = squared_error(answer, mean_velocity_target(velocity, change, t, r))
        return {"mean_velocity": Term.of(adaptive(errors, prod(self.shape), self.power))}
