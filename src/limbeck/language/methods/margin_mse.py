"""Margin-MSE: a retriever learns the margins between relevant and other documents from a ranker of any architecture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.language.ranking import check_scores, check_texts, scores_of, taught_scores
from limbeck.language.ranking_losses import margin_mse, pointwise_mse
from limbeck.registry import register


@register("method")
class MarginMSE(Method):
    """``MSE(s(q, d+) - s(q, d-), t(q, d+) - t(q, d-))``, without labels beyond which document comes first.

    Hofstaetter et al. 2020 (arXiv 2010.02666). Several teachers teach by their mean score. Scores that are stored with
    the data (``data.scores``) count as a teacher's; a recipe's ``cache`` stores those of a live one. Students whose
    scores are cosines cannot reach a teacher's margins: use dot products.

    Args:
        match: ``margin`` compares margins, ``pointwise`` the scores themselves.
        teacher_scale: multiplies the teacher's scores, for teachers whose scores lie close together.
    """

    needs = {"*": {"logits"}}

    def __init__(self, *, match: Literal["margin", "pointwise"] = "margin", teacher_scale: float = 1.0) -> None:
        self.match = match
        self.teacher_scale = teacher_scale

    def setup(self, parts: Parts) -> None:
        """The student learns; a run without any scores to learn from is refused."""
        super().setup(parts)
        check_texts(parts, "margin_mse")
        check_scores(parts, "margin_mse")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"margin"}`` or ``{"pointwise"}``, the mean over a list's documents for each list."""
        student, teacher = scores_of(self.student, batch), taught_scores(self.teachers, batch) * self.teacher_scale
        loss = margin_mse if self.match == "margin" else pointwise_mse
        return {self.match: Term.of(loss(student, teacher))}
