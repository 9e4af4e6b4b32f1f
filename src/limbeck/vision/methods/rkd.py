"""Relational knowledge distillation."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Seen
from limbeck.vision.losses.relations import rkd_angle, rkd_distance
from limbeck.vision.shapes import as_vector


@register("method")
class RKD(FeatureTaught):
    """Relational Knowledge Distillation (Park et al. 2019, arXiv 1904.05068).

    ``L = CE + distance_weight L_D + angle_weight L_A``: the distances of all pairs and the angles of all triplets of
    embeddings in the batch are the teacher's. Time and memory grow with the cube of the batch: keep it under 128.

    Args:
        distance_weight: of the pairs.
        angle_weight: of the triplets; the paper has twice that of the pairs.
    """

    look = "embedding"
    couples_samples = True

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0, **rest: Any) -> None:
        super().__init__(**rest)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"distance", "angle"}`` over the global batch."""
        rows = seen.together()
        s, t = (rows.all(as_vector(feature)) for feature in (seen.s[-1], seen.t[-1]))
        return {
            "distance": Term.of(rows.own(rkd_distance(s, t)), weight=self.distance_weight),
            "angle": Term.of(rows.own(rkd_angle(s, t)), weight=self.angle_weight),
        }
