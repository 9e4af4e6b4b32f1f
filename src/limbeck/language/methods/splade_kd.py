"""SPLADE with margins from a teacher: a sparse retriever that pays for every word it gives weight to."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.language.ranking import check_scores, check_texts, list_scores_in, taught_scores, vectors_in
from limbeck.language.ranking_losses import flops, margin_mse
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class SpladeKD(Method):
    """``MarginMSE + r(t) (lambda_q FLOPS(q) + lambda_d FLOPS(d))`` over a sparse encoder's vectors.

    Formal et al. 2021 (SPLADE v2, arXiv 2109.10086). FLOPS is the sum over words of the squared mean weight in the
    batch, so a batch cannot be cut; its weight grows with the square of the time until ``warmup`` of the training is
    done. The paper mines hard negatives by a first model; the lists here are those of the data.

    Args:
        alpha: weight of the teacher's margins; the rest is cross-entropy with the relevant document's place.
        query_flops: lambda_q.
        document_flops: lambda_d.
        warmup: share of the training after which the regulariser has its whole weight.
    """

    needs = {"*": {"logits"}}
    couples_samples = True

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        query_flops: float = 0.003,
        document_flops: float = 0.001,
        warmup: float = 0.33,
    ) -> None:
        self.alpha = alpha
        self.query_flops = query_flops
        self.document_flops = document_flops
        self.warmup = warmup

    def setup(self, parts: Parts) -> None:
        """The student learns; a run without any scores to learn from is refused."""
        super().setup(parts)
        check_texts(parts, "splade_kd")
        if self.alpha > 0:
            check_scores(parts, "splade_kd")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "margin", "query_flops", "document_flops"}``; one whose weight is zero is left out."""
        found = forward(self.student, batch)
        scores, vectors = list_scores_in(found, "the student"), vectors_in(found, "the student")
        terms = {}
        if self.alpha < 1:
            terms["ce"] = label_loss(scores, batch, weight=1 - self.alpha)
        if self.alpha > 0:
            margins = margin_mse(scores, taught_scores(self.teachers, batch))
            terms["margin"] = Term.of(margins, weight=self.alpha)
        grown = self.grown(clock.progress)
        sides = {"query_flops": vectors[:, 0], "document_flops": vectors[:, 1:].flatten(0, 1)}
        for name, side in sides.items():
            weight = getattr(self, name) * grown
            if weight > 0:
                # One value for the whole batch, said once for each of its rows.
                terms[name] = Term.of(flops(side).expand(len(batch["id"])), weight=weight)
        return terms

    def grown(self, progress: float) -> float:
        """The share of its weight that the regulariser has at a time in [0, 1)."""
        return min(1.0, (progress / self.warmup) ** 2) if self.warmup > 0 else 1.0

    def health(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """How many words have weight in a query and in a document."""
        with torch.no_grad():
            there = (vectors_in(forward(self.student, batch), "the student") != 0).sum(-1).float()
        return {"active_query": Term.of(there[:, 0]), "active_document": Term.of(there[:, 1:])}
