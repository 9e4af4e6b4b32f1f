"""Hinton's knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from limbeck.engine.method import Batch, Clock, Method, Term, Update
from limbeck.losses import label_loss, taught
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class KD(Method):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    ``L = ce_weight CE(y, p_s) + kd_weight T^2 KL(p_t^T || p_s^T)``; the defaults are the common CIFAR-100 recipe.

    Args:
        temperature: T, softens both distributions.
        ce_weight: weight of the labels.
        kd_weight: weight of the teacher.
        direction: of the divergence.
    """

    needs = {"teacher": {"logits"}}
    truncated = True

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        direction: Literal["forward", "reverse", "jeffreys", "js"] = "forward",
    ) -> None:
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.direction: Literal["forward", "reverse", "jeffreys", "js"] = direction

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "kd"}``; samples without a label are taught by the teacher alone."""
        logits = forward(self.student, batch).logits
        soft = taught(logits, self.teacher(batch), temperature=self.temperature, direction=self.direction)
        return {
            "ce": label_loss(logits, batch, weight=self.ce_weight),
            "kd": Term.of(soft, weight=self.kd_weight),
        }
