"""Ranking distillation over candidate lists: the teacher's distribution, or only its order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.language.ranking import check_scores, check_texts, scores_of, taught_scores
from limbeck.language.ranking_losses import listwise_kl, ndcg_weights, places, ranknet
from limbeck.losses import label_loss
from limbeck.registry import register


@register("method")
class ListwiseRank(Method):
    """A list's scores against the teacher's, in one of three ways, with the labels beside it.

    ``listwise``: ``T^2 KL(softmax(t / T) || softmax(s / T))`` (RankT5, Zhuang et al. 2022, arXiv 2210.10634; its
    gradient at T = 1 is that of the softmax cross-entropy). ``ranknet``: ``sum log(1 + exp(s_j - s_i))`` over the pairs
    that the teacher orders so, for teachers that give no more than an order (RankGPT, Sun et al. 2023, arXiv
    2304.09542). ``lambda``: the same with each pair weighed by how much nDCG changes where they swap places; gains are
    one over the teacher's places.

    Args:
        match: what is compared.
        alpha: weight of the teacher's part; the rest is cross-entropy with the relevant document's place.
        temperature: T of ``listwise``.
    """

    needs = {"*": {"logits"}}

    def __init__(
        self,
        *,
        match: Literal["listwise", "ranknet", "lambda"] = "listwise",
        alpha: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.match = match
        self.alpha = alpha
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """The student learns; a run without any scores to learn from is refused."""
        super().setup(parts)
        check_texts(parts, "listwise_rank")
        check_scores(parts, "listwise_rank")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "rank"}``; one whose weight is zero is left out."""
        student = scores_of(self.student, batch)
        terms = {}
        if self.alpha < 1:
            terms["ce"] = label_loss(student, batch, weight=1 - self.alpha)
        if self.alpha > 0:
            values = self.compared(student, taught_scores(self.teachers, batch))
            terms["rank"] = Term.of(values, weight=self.alpha)
        return terms

    def compared(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One value per list [B], from scores [B, n]."""
        if self.match == "listwise":
            return listwise_kl(student, teacher, temperature=self.temperature)
        if self.match == "ranknet":
            return ranknet(student, teacher)
        gains = 1.0 / places(teacher).to(student.dtype)
        return ranknet(student, teacher, ndcg_weights(student, gains))
