"""Nested text vectors: every prefix of the student's vector is taught, so that it can be cut to any of these sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.ranking import check_texts, vectors_in
from limbeck.language.ranking_losses import cosine_distance, list_scores, listwise_kl, prefixes, vector_l2
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class Matryoshka(Method):
    """``sum_m L(s[:m], t)`` over prefixes of the student's vector, each scaled to length 1.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147, with all weights 1), with a teacher's
    vectors in place of the classes. ``similarity`` compares the distributions over a list's documents, by the prefix
    and by the teacher's whole vector; the others compare the prefix with the teacher's prefix, which has to be of the
    same dimension, and asks of the teacher that it is nested itself.

    Args:
        dims: sizes of the prefixes.
        match: ``similarity``, or the ``cosine`` or squared distance (``mse``) to the teacher's prefix.
        temperature: of the distributions over a list, by which cosines are divided.
        alpha: weight of the teacher's part; the rest is cross-entropy with the relevant document's place, by every
            prefix as well.
    """

    needs = {"teacher": {"embedding"}}

    def __init__(
        self,
        *,
        dims: tuple[int, ...] = (8, 16, 32),
        match: Literal["similarity", "cosine", "mse"] = "similarity",
        temperature: float = 0.05,
        alpha: float = 1.0,
    ) -> None:
        self.dims = tuple(dims)
        self.match = match
        self.temperature = temperature
        self.alpha = alpha

    def setup(self, parts: Parts) -> None:
        """The student learns; prefixes that it does not have are refused."""
        super().setup(parts)
        check_texts(parts, "matryoshka")
        sizes = [parts.student] + ([self.teacher.module] if self.match != "similarity" else [])
        for size in (getattr(m, "dim", None) for m in sizes):
            if not self.dims or min(self.dims) < 1 or (size is not None and max(self.dims) > size):
                raise UserError(
                    f"matryoshka: dims {list(self.dims)} are not all from 1 to {size}, what the vectors have"
                )

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "nested"}``, sums over the prefixes; one whose weight is zero is left out."""
        student = prefixes(vectors_in(forward(self.student, batch), "the student"), self.dims)
        terms = {}
        if self.alpha < 1:
            found = [label_loss(list_scores(x) / self.temperature, batch) for x in student]
            total = torch.stack([term.sum for term in found]).sum()
            terms["ce"] = Term(total, found[0].count, 1 - self.alpha, found[0].unit)
        if self.alpha > 0:
            teacher = vectors_in(self.teacher(batch), "the teacher").to(student[0].dtype)
            values = torch.stack(self.compared(student, teacher)).sum(0)
            terms["nested"] = Term.of(values, weight=self.alpha)
        return terms

    def compared(self, student: list[Tensor], teacher: Tensor) -> list[Tensor]:
        """One value for each row (and each text, where prefixes are compared) by each prefix."""
        if self.match == "similarity":
            whole = list_scores(prefixes(teacher, [teacher.shape[-1]])[0]) / self.temperature
            return [listwise_kl(list_scores(x) / self.temperature, whole) for x in student]
        theirs = prefixes(teacher, self.dims)
        if self.match == "cosine":
            return [cosine_distance(x, y) for x, y in zip(student, theirs, strict=True)]
        return [vector_l2(x, y, squared=True) for x, y in zip(student, theirs, strict=True)]
