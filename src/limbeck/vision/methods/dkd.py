"""Decoupled knowledge distillation."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.engine.method import Batch, Clock, Method, Term, Update
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.losses import nckd, tckd


@register("method")
class DKD(Method):
    """Decoupled Knowledge Distillation (Zhao et al. 2022, arXiv 2203.08679).

    ``L = CE + w T^2 (alpha TCKD + beta NCKD)``: the target class and the other classes are weighted apart, where
    classical distillation ties the second to ``1 - p_teacher(label)``. ``w`` grows from 0 to 1 over the warm-up.

    Args:
        alpha: weight of the target-class part (TCKD).
        beta: weight of the part among the other classes (NCKD); 1 to 8 by the pair of models.
        temperature: T, softens both distributions.
        warmup: epochs over which ``w`` grows linearly (20 in the paper's 240-epoch recipe).
    """

    needs = {"teacher": {"logits"}}
    dial = "beta"

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: float = 20.0
    ) -> None:
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup = warmup

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "tckd", "nckd"}``; the two parts are terms of their own, so each one's share is seen."""
        student, teacher = forward(self.student, batch).logits, self.teacher(batch).logits
        labels, known = batch["label"], batch["label"] >= 0
        scale = self.ramp(clock) * self.temperature**2
        target = tckd(student, teacher, labels, self.temperature)
        others = nckd(student, teacher, labels, self.temperature)
        return {
            "ce": label_loss(student, batch),
            "tckd": Term.of(target, known, weight=scale * self.alpha, unit="labelled"),
            "nckd": Term.of(others, known, weight=scale * self.beta, unit="labelled"),
        }

    def ramp(self, clock: Clock) -> float:
        """``min(epoch / warmup, 1)`` with the paper's count: the first epoch has 1 / warmup."""
        return min((clock.epoch + 1) / self.warmup, 1.0) if self.warmup > 0 else 1.0
