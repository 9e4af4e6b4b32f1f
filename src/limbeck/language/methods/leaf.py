"""LEAF: a small encoder regresses the vectors of a large one, in the large one's own space."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.ranking import check_texts, vectors_in
from limbeck.language.ranking_losses import vector_l2
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class Leaf(Method):
    """``||W s(x) - t(x)||_2`` over texts alone: no pairs, no negatives, no labels (arXiv 2509.12539).

    W is the student's own last linear layer (``student.dim``) and stays: queries may go through the student and
    documents through the teacher. What the teacher's vectors bear (truncation, quantisation), the student's inherit.
    Whether the paper squares the distance or normalises the student is not known; the defaults do neither.

    Args:
        squared: take the squared distance.
        normalize: scale the student's vectors to length 1 before they are compared.
    """

    needs = {"teacher": {"embedding"}}

    def __init__(self, *, squared: bool = False, normalize: bool = False) -> None:
        self.squared = squared
        self.normalize = normalize

    def setup(self, parts: Parts) -> None:
        """The student learns; one without the teacher's dimension is refused."""
        super().setup(parts)
        check_texts(parts, "leaf")
        own, theirs = (getattr(m, "dim", None) for m in (parts.student, self.teacher.module))
        if own is not None and theirs is not None and own != theirs:
            says = f"the student's vectors have {own} dimensions, the teacher's {theirs}"
            raise UserError(f"{says}: leaf compares them in the teacher's space, so give student.dim: {theirs}")

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"l2"}``, the mean over a row's texts for each row."""
        student = vectors_in(forward(self.student, batch), "the student")
        student = F.normalize(student, dim=-1) if self.normalize else student
        teacher = vectors_in(self.teacher(batch), "the teacher")
        return {"l2": Term.of(vector_l2(student, teacher.to(student.dtype), squared=self.squared))}
