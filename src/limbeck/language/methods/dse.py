"""Distilled sentence embedding: a model that reads two sentences together teaches one that encodes each alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.ranking import check_texts
from limbeck.language.ranking_losses import pointwise_mse
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class DSE(Method):
    """``(1 - c) CE(y, p_s) + c sum_k (z_s - z_t)_k^2`` over the logits of sentence pairs.

    Barkan et al. 2020 (arXiv 1908.05161), with the released code's c. Pairs that have a score in place of a class take
    the binary cross-entropy with it. The student is a siamese encoder with a cheap head (``pair_encoder``); its head
    ``mlp`` is no metric that an index can search by, ``dot`` is.

    Args:
        alpha: c, weight of the teacher's logits.
    """

    needs = {"teacher": {"logits"}}

    def __init__(self, *, alpha: float = 0.5) -> None:
        self.alpha = alpha

    def setup(self, parts: Parts) -> None:
        """The student learns; data that has no texts is refused."""
        super().setup(parts)
        check_texts(parts, "dse")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "logits"}``; one whose weight is zero is left out."""
        student = self._logits(forward(self.student, batch), "the student")
        terms = {}
        if self.alpha < 1:
            terms["ce"] = supervised(student, batch, 1 - self.alpha)
        if self.alpha > 0:
            teacher = self._logits(self.teacher(batch), "the teacher").to(student.dtype)
            terms["logits"] = Term.of(pointwise_mse(student, teacher).sum(-1), weight=self.alpha)
        return terms

    def _logits(self, signals: dict[str, Tensor], who: str) -> Tensor:
        if "logits" not in signals:
            raise UserError(f"dse: {who} gives no logits of a pair; it needs rows of two texts (data text_pairs)")
        return signals["logits"]


def supervised(logits: Tensor, batch: Batch, weight: float) -> Term:
    """Cross-entropy with the classes of pairs, or binary cross-entropy with their scores in [0, 1].

    Raises:
        UserError: the pairs have neither.
    """
    if "label" in batch and logits.shape[-1] > 1:
        return label_loss(logits, batch, weight=weight)
    if "score" not in batch:
        raise UserError("dse: the pairs have neither classes nor scores to learn: give them, or say alpha: 1")
    if logits.shape[-1] > 1:
        raise UserError(f"dse: pairs with scores have one logit, and the student gives {logits.shape[-1]}")
    values = F.binary_cross_entropy_with_logits(logits[:, 0].float(), batch["score"], reduction="none")
    return Term.of(values, weight=weight)
