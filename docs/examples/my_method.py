"""Distillation that trusts its teacher where the teacher is sure."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck import Batch, Clock, Method, Term, Update, forward, register
from limbeck.losses import label_loss, soft_kl


@register("method")
class TrustKD(Method):
    """Soft targets, each sample weighed by how sure its teacher is.

    ``L = CE(y, p_s) + weight * c^gamma * T^2 KL(p_t || p_s)``, where ``c`` is the teacher's largest probability.

    Args:
        weight: of the teacher's part.
        gamma: how much sureness counts; 0 is plain distillation.
        temperature: T, softens both distributions.
    """

    needs = {"teacher": {"logits"}}

    def __init__(self, *, weight: float = 1.0, gamma: float = 2.0, temperature: float = 4.0) -> None:
        self.weight = weight
        self.gamma = gamma
        self.temperature = temperature

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "kd"}``, both with one value per sample."""
        student, teacher = forward(self.student, batch).logits, self.teacher(batch).logits
        trust = teacher.softmax(-1).amax(-1) ** self.gamma
        soft = soft_kl(student, teacher, temperature=self.temperature)
        return {"ce": label_loss(student, batch), "kd": Term.of(trust * soft, weight=self.weight)}
