"""Correlation congruence."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen
from limbeck.vision.losses.relations import congruence
from limbeck.vision.shapes import as_vector


@register("method")
class CC(FeatureTaught):
    """Correlation Congruence for Knowledge Distillation (Peng et al. 2019, arXiv 1904.01802).

    ``L = ce_weight CE + kd_weight KD + beta / B^2 |K_s - K_t|_F^2`` with ``K`` the expanded Gaussian kernel between the
    embeddings of the batch. The kernel needs no common width, so there is no embedding layer on either side; batches
    are drawn at random, not by class or cluster.

    Args:
        beta: weight of the kernels (0.02 in the common CIFAR-100 recipe).
        gamma: of the kernel.
        order: of its Taylor expansion.
    """

    look = "embedding"
    couples_samples = True

    def __init__(self, *, beta: float = 0.02, gamma: float = 0.4, order: int = 2, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.gamma = gamma
        self.order = order

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"cc"}`` over the global batch."""
        rows = seen.together()
        s, t = (rows.all(as_vector(feature)) for feature in (seen.s[-1], seen.t[-1]))
        return {"cc": Term.of(rows.own(congruence(s, t, gamma=self.gamma, order=self.order)), weight=self.beta)}
