"""Similarity-preserving distillation."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen, summed
from limbeck.vision.losses.relations import similarity


@register("method")
class SP(FeatureTaught):
    """Similarity-Preserving Knowledge Distillation (Tung and Mori 2019, arXiv 1907.09682).

    ``L = CE + beta / B^2 sum_l |G_s - G_t|_F^2``: samples that excite the teacher alike excite the student alike.
    ``G`` holds the inner products of the activations of all pairs of the batch, each row at length 1; they are taken
    at the end of the last stage unless layers are named.

    Args:
        beta: weight of the similarities, of every layer alike (the paper's gamma).
    """

    look = "last"
    couples_samples = True

    def __init__(self, *, beta: float = 3000.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"sp"}`` over the global batch: the sum over layers."""
        rows = seen.together()
        layers = zip(seen.s, seen.t, strict=True)
        value = summed(similarity(rows.all(s.flatten(1)), rows.all(t.flatten(1))) for s, t in layers)
        return {"sp": Term.of(rows.own(value), weight=self.beta)}
