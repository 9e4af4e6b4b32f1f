"""Probabilistic knowledge transfer."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen
from limbeck.vision.losses.relations import pkt
from limbeck.vision.shapes import as_vector


@register("method")
class PKT(FeatureTaught):
    """Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis and Tefas 2018, arXiv 1803.10837).

    ``L = CE + beta / B^2 sum_i KL(P_.|i || Q_.|i)`` over the probabilities, by the cosine of their embeddings, that
    one sample of the batch is the neighbour of another. A sample is not its own neighbour, as in the paper; the
    authors' code counts it.

    Args:
        beta: weight of the divergence (30000 in the common CIFAR-100 recipe; the paper's loss stands alone).
    """

    look = "embedding"
    couples_samples = True

    def __init__(self, *, beta: float = 30000.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"pkt"}`` over the global batch."""
        rows = seen.together()
        s, t = (rows.all(as_vector(feature)) for feature in (seen.s[-1], seen.t[-1]))
        return {"pkt": Term.of(rows.own(pkt(s, t)), weight=self.beta)}
