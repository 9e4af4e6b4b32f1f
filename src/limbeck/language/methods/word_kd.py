"""Word-level knowledge distillation: the teacher's whole next-token distribution at every position of fixed text."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from limbeck.engine.method import Batch, Parts, Term
from limbeck.language.base import TokenMethod
from limbeck.language.head import ChunkedTerms
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class WordKD(TokenMethod):
    """``(1 - alpha) CE(y, q) + alpha T^2 D(p_T || q_T)`` per token, teacher-forced on the text of the data.

    Hinton et al. 2015 (arXiv 1503.02531); Kim and Rush 2016 (arXiv 1606.07947).

    Args:
        alpha: weight of the divergence, the rest is cross-entropy with the text.
        chunked: compute the vocabulary head and both losses a few tokens at a time, so that the logits of a batch are
            never held; by default where they are large and the models allow it. Value and gradient are the same.
    """

    needs = {"teacher": {"logits"}}
    dial = "alpha"
    truncated = True

    def __init__(self, *, alpha: float = 0.5, chunked: bool | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.alpha = alpha
        self.chunked = chunked

    def setup(self, parts: Parts) -> None:
        """As every token method; where chunks are asked for, models that cannot do it are refused.

        Raises:
            UserError: that, or what :meth:`TokenMethod.setup` refuses.
        """
        super().setup(parts)
        self.in_chunks = ChunkedTerms(self)
        if self.chunked:
            self.in_chunks.check()

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce`` and ``kd``; one whose weight is zero is left out."""
        terms = self.in_chunks(batch, {"kd": self.alpha, "ce": 1 - self.alpha}, self.chunked)
        if terms is not None:
            return terms
        logits, labels = self.next_tokens(batch)
        values: dict[str, tuple[Tensor, float]] = {}
        if self.alpha < 1:
            values["ce"] = cross_entropy(logits, labels), 1 - self.alpha
        if self.alpha > 0:
            values["kd"] = self.divergence(logits, self.teacher(batch)), self.alpha
        return {name: self.term(value, labels, weight) for name, (value, weight) in values.items()}
