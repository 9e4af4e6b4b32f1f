"""MEAL V2: an ensemble's soft labels and a discriminator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.losses import label_loss, log_softmax
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import example
from limbeck.vision.losses.soft import mean_probabilities, soft_cross_entropy

TINY = 1e-30
"""Below float32's least normal probability the logarithm would be infinite."""


@register("method")
class MEALV2(Method):
    """MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy (Shen and Savvides 2020, arXiv 2009.08453).

    ``L = - sum_k q_k log p_s,k + w BCE(D(log p_s), teacher)`` with ``q`` the mean of all teachers' probabilities, and
    no label. After each of the student's steps the discriminator learns to tell its log-probabilities from ``log q``.
    The student is meant to start from trained weights (``student: {path: ...}``, or an earlier phase).

    Args:
        adversarial_weight: w, of what the discriminator says of the student.
        reduction: the discriminator's hidden layers have K / reduction and K / reduction^2 units, at least 4.
        ce_weight: of the labels, which the paper leaves out.
        temperature: of the teachers and the student (1 in the paper).
    """

    needs = {"*": {"logits"}}
    controls = {"alone": {"method": {"name": "supervised"}, "teacher": None, "teachers": None}}

    def __init__(
        self,
        *,
        adversarial_weight: float = 1.0,
        reduction: int = 8,
        ce_weight: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        self.adversarial_weight = adversarial_weight
        self.reduction = reduction
        self.ce_weight = ce_weight
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """The discriminator.

        Raises:
            UserError: there is no teacher.
        """
        super().setup(parts)
        if not self.teachers:
            raise UserError("meal_v2 needs teachers: name at least one under teachers")
        with places.looking(parts.student):
            classes = forward(parts.student, example(parts)).logits.shape[-1]
        self.learners["discriminator"] = Discriminator(classes, self.reduction)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The student, then the discriminator on what the student said before its step."""
        student, target = forward(self.student, batch).logits, self.targets(batch)
        yield Update("student", self.student_terms(student, target, batch))
        said = student.detach()
        del student  # its graph
        yield Update("discriminator", lambda: self.discriminator_terms(said, target))

    def targets(self, batch: Batch) -> Tensor:
        """The mean of the teachers' probabilities, [B, K]."""
        return mean_probabilities([t(batch).logits for t in self.teachers.values()], self.temperature)

    def student_terms(self, student: Tensor, target: Tensor, batch: Batch) -> dict[str, Term]:
        """``{"kd", "adversarial"}``, and ``"ce"`` if it has a weight."""
        terms = {"kd": Term.of(soft_cross_entropy(student / self.temperature, target))}
        if self.adversarial_weight:
            discriminator = self.learners["discriminator"]
            with frozen(discriminator):
                values = source_loss(discriminator(log_softmax(student, self.temperature)), teacher=True)
            terms["adversarial"] = Term.of(values, weight=self.adversarial_weight)
        if self.ce_weight:
            terms["ce"] = label_loss(student, batch, weight=self.ce_weight)
        return terms

    def discriminator_terms(self, student: Tensor, target: Tensor) -> dict[str, Term]:
        """``{"bce"}``: the mean of both sides."""
        both = torch.cat([log_softmax(student, self.temperature), target.clamp_min(TINY).log()])
        own, other = self.learners["discriminator"](both).chunk(2)
        return {"bce": Term.of(0.5 * (source_loss(own, teacher=False) + source_loss(other, teacher=True)))}


class Discriminator(nn.Module):
    """Three linear layers with ReLU from log-probabilities [B, K] to two logits: student, teacher."""

    def __init__(self, classes: int, reduction: int) -> None:
        super().__init__()
        first, second = (max(classes // reduction**i, 4) for i in (1, 2))
        layers = [nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K] -> [B, 2]."""
        return self.layers(x)


def source_loss(logits: Tensor, *, teacher: bool) -> Tensor:
    """Binary cross-entropy of two logits (student, teacher) with where their row comes from, [B, 2] -> [B]."""
    truth = logits.new_tensor([0.0, 1.0] if teacher else [1.0, 0.0]).expand_as(logits).float()
    return F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none").mean(-1)
