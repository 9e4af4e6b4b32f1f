"""One encoder, several exits: the same loss at each, the more so the deeper it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.models.exits import ExitEncoder
from limbeck.language.ranking import check_texts
from limbeck.language.ranking_losses import cosine_distance
from limbeck.losses import cross_entropy
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class MoSE(Method):
    """``sum_i (i / L) InfoNCE_i`` over the exits after layers i of L, each by its own projection head.

    ModularStarEncoder's fine-tuning (Gurioli et al. 2025, "One Model to Train them All", arXiv 2503.03008): queries and
    their documents are told apart from the others of the batch, in both directions, by cosines over a temperature. What
    upper layers hand down is only what they share with the lower ones; ``explicit`` adds ``1 - cos`` to the last exit's
    vector, without gradient to that. The replacement of frequent identifiers is for code, and left out.

    Args:
        temperature: divides the cosines; the paper multiplies them by 10.
        weights: an exit after i of L layers weighs i / L (``depth``), or as much as the others (``even``), 1.
        explicit: weight of the early exits' distance from the last one.
    """

    couples_samples = True

    def __init__(
        self, *, temperature: float = 0.1, weights: Literal["depth", "even"] = "depth", explicit: float = 0.0
    ) -> None:
        self.temperature = temperature
        self.weights = weights
        self.explicit = explicit

    def setup(self, parts: Parts) -> None:
        """The student learns.

        Raises:
            UserError: it has no exits, or the data has no queries and documents.
        """
        super().setup(parts)
        check_texts(parts, "mose")
        if not isinstance(parts.student, ExitEncoder):
            raise UserError(f"mose: the student must be an exit_encoder, not {type(parts.student).__name__}")
        self.exits = parts.student.exits

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``exit_i``, and ``explicit_i`` of the early ones where they have a weight."""
        if batch["input_ids"].dim() != 3 or batch["input_ids"].shape[1] < 2:
            raise UserError("mose learns from rows of a query and documents (data.rows: lists)")
        found: list[Tensor] = forward(self.student, batch).exits
        known, alike = batch["label"] >= 0, same_pairs(batch)
        terms: dict[str, Term] = {}
        for layer, vectors in zip(self.exits, found, strict=True):
            weight = layer / self.exits[-1] if self.weights == "depth" else 1.0
            values = info_nce(vectors[:, 0], relevant(vectors, batch), alike, self.temperature)
            terms[f"exit_{layer}"] = Term.of(values, known, weight=weight)
            if self.explicit > 0 and layer != self.exits[-1]:
                apart = cosine_distance(vectors, found[-1].detach())
                terms[f"explicit_{layer}"] = Term.of(apart, weight=weight * self.explicit)
        return terms


def info_nce(queries: Tensor, documents: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query with its document among all, and of each document with its query; their mean [B].

    Args:
        queries: [B, D].
        documents: [B, D], row by row.
        alike: bool [B, B]; other pairs that are right as well, which are left out of the sums.
        temperature: divides the cosines.
    """
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(documents.float(), dim=-1).T
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    logits = (cosines / temperature).masked_fill(alike & ~own, -torch.inf)
    places = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2


def same_pairs(batch: Batch) -> Tensor:
    """Which rows have the same query or the same relevant document, or where one names none, bool [B, B]."""
    ids = batch["input_ids"]
    texts = ids[:, 0], relevant(ids, batch)
    same = [(x[:, None] == x[None]).all(-1) for x in texts]
    none = batch["label"] < 0
    return same[0] | same[1] | none[:, None] | none


def relevant(texts: Tensor, batch: Batch) -> Tensor:
    """What each row [B, 1 + n, ...] has of the document that its label names (of the first, if none), [B, ...]."""
    return texts[torch.arange(len(texts), device=texts.device), batch["label"].clamp_min(0) + 1]
