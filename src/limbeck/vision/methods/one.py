"""On-the-fly native ensemble."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch

from limbeck.engine.features import Taps
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import label_loss, soft_kl, wide
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import example, summed
from limbeck.vision.branches import Branches, end_of


@register("method")
class ONE(Method):
    """Knowledge Distillation by On-the-Fly Native Ensemble (Lan et al. 2018, arXiv 1806.04606).

    Branches are copies of the student's last stage and head on its trunk; a gate ``g`` that reads the trunk makes them
    an ensemble ``z_e = sum_i g_i z_i`` that teaches each: ``L = sum_i CE(z_i) + CE(z_e) + w kd_weight T^2 sum_i
    KL(p_e^T || p_i^T)``, the student's own branch among the i. ``p_e`` takes no gradient as a teacher. ``w`` is
    ``exp(-5 (1 - epoch / rampup)^2)`` until it is 1. The delivered student keeps its own branch alone.

    Args:
        branches: how many there are, the student's own among them.
        temperature: of the soft targets.
        kd_weight: of the ensemble's soft targets; 0 leaves branches that learn from labels alone.
        rampup: epochs until ``w`` is 1 (80 in the paper's 300-epoch recipe).
        gate: ``learned``, or ``mean`` where all branches weigh alike.
        stage: module path of the stage that is copied; by default the last one.
    """

    def __init__(
        self,
        *,
        branches: int = 3,
        temperature: float = 3.0,
        kd_weight: float = 1.0,
        rampup: float = 80.0,
        gate: Literal["learned", "mean"] = "learned",
        stage: str | None = None,
    ) -> None:
        if branches < 2:
            raise ValueError(f"an ensemble needs at least 2 branches, got {branches}")
        self.branches = branches
        self.temperature = temperature
        self.kd_weight = kd_weight
        self.rampup = rampup
        self.gate: Literal["learned", "mean"] = gate
        self.stage = stage

    def setup(self, parts: Parts) -> None:
        """Copy the student's end and tap its trunk."""
        super().setup(parts)
        end = end_of(parts.student, example(parts), self.stage)
        gated = self.gate == "learned"
        self.learners["branches"] = Branches(parts.student, end, self.branches - 1, gated=gated)
        # After the copies, which would otherwise be tapped as well.
        self._trunk = Taps(parts.student, [end.stage], of="input")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and its branches."""
        yield Update(("student", "branches"), self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce"}`` of the student, ``{"branches", "ensemble"}`` of the others, and ``{"kd"}`` over all branches."""
        own = forward(self.student, batch).logits
        (trunk,) = self._trunk.pop().values()
        others, gates = self.learners["branches"](trunk)
        logits = [own, *others]
        ensemble = (gates[:, :, None] * wide(torch.stack(logits, 1))).sum(1)
        kd = summed(soft_kl(z, ensemble.detach(), temperature=self.temperature) for z in logits)
        ce = [label_loss(z, batch) for z in others]
        total = sum((term.sum for term in ce[1:]), start=ce[0].sum)
        return {
            "ce": label_loss(own, batch),
            "branches": Term(total, ce[0].count, unit=ce[0].unit),
            "ensemble": label_loss(ensemble, batch),
            "kd": Term.of(kd, weight=self.kd_weight * self.ramp(clock)),
        }

    def ramp(self, clock: Clock) -> float:
        """``w``: a sigmoid-shaped rise to 1, the first epoch counted as 1."""
        left = 1.0 - min((clock.epoch + 1) / self.rampup, 1.0) if self.rampup > 0 else 0.0
        return math.exp(-5.0 * left**2)
