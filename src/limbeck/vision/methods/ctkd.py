"""Curriculum temperature."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.engine.method import Parts, Term
from limbeck.losses import wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import Seen, Taught, example
from limbeck.vision.losses.logits import tempered_kl


@register("method")
class CTKD(Taught):
    """Curriculum Temperature for Knowledge Distillation (Li et al. 2023, arXiv 2211.16231).

    ``L = ce_weight CE + weight T^2 KL(p_t^T || p_s^T)`` with a learnt ``T = start + span sigmoid(t)``. The student
    minimises the soft targets and the temperature maximises them: its gradient is reversed and grows along a cosine
    from 0 to ``strength`` over the first epochs, from an easy to a hard lesson. The temperature is a learner of its
    own (``train.learners.temperature``).

    Args:
        weight: of the soft targets.
        ce_weight: weight of the labels.
        temperature_of: one temperature for all (``global``), or one for each ``sample``, from both sides' logits
            through a small network.
        start: lowest temperature.
        span: by how much the highest one exceeds it.
        strength: factor of the reversed gradient after the ramp; 0 holds the temperature still.
        ramp: epochs over which that factor grows.
        initial: ``t`` of the global temperature at the start.
        hidden: width of the network for the temperature of each sample.
    """

    fixed = ("initial",)

    def __init__(
        self,
        *,
        weight: float = 0.9,
        ce_weight: float = 0.1,
        temperature_of: Literal["global", "sample"] = "global",
        start: float = 1.0,
        span: float = 20.0,
        strength: float = 1.0,
        ramp: float = 10.0,
        initial: float = 1.0,
        hidden: int = 64,
        **rest: Any,
    ) -> None:
        super().__init__(ce_weight=ce_weight, **rest)
        self.weight = weight
        self.temperature_of = temperature_of
        self.start = start
        self.span = span
        self.strength = strength
        self.ramp = ramp
        self.initial = initial
        self.hidden = hidden

    def setup(self, parts: Parts) -> None:
        """The student, and the temperature."""
        super().setup(parts)
        classes = _classes(parts) if self.temperature_of == "sample" else 0
        self.learners["temperature"] = Temperature(self.initial, classes, self.hidden)

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"soft"}``: both learners' term."""
        # What the temperature reads is cut off: the student learns against a temperature, not through it.
        given = seen.student.detach(), seen.teacher
        t = self.learners["temperature"](*given, self.reversal(seen.clock.epoch))
        values = tempered_kl(seen.student, seen.teacher, self.start + self.span * torch.sigmoid(t))
        return {"soft": Term.of(values, weight=self.weight)}

    def reversal(self, epoch: int) -> float:
        """Factor of the reversed gradient in an epoch, counted from 0."""
        done = min((epoch + 1) / self.ramp, 1.0) if self.ramp > 0 else 1.0
        return self.strength * (1 - math.cos(math.pi * done)) / 2


class Temperature(nn.Module):
    """What the temperature is made of, before the sigmoid; its gradient comes in reversed.

    Args:
        initial: of the one value for all samples.
        classes: 0 for one value for all; else the width of the logits, from which a network gives each sample's.
        hidden: width of that network.
    """

    def __init__(self, initial: float, classes: int, hidden: int) -> None:
        super().__init__()
        self.value: nn.Parameter | None = None
        self.net: nn.Module | None = None
        if classes:
            self.net = nn.Sequential(nn.Linear(2 * classes, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        else:
            self.value = nn.Parameter(torch.full((1,), initial))

    def forward(self, student: Tensor, teacher: Tensor, strength: float) -> Tensor:
        """Logits [B, K] of both sides -> [B]."""
        if self.net is not None:
            t = wide(self.net(torch.cat([teacher, student], dim=-1)))[:, 0]
        else:
            assert self.value is not None
            t = self.value.expand(len(student))
        return _Reversed.apply(t, strength)


class _Reversed(torch.autograd.Function):
    """The identity; backward turns the gradient round and scales it (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def _classes(parts: Parts) -> int:
    """Width of the student's logits."""
    with places.looking(parts.student):
        return forward(parts.student, example(parts)).logits.shape[-1]
