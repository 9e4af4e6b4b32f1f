"""DIST: correlation in place of divergence."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import Seen, Taught
from limbeck.vision.losses.logits import dist_inter, dist_intra


@register("method")
class DIST(Taught):
    """Knowledge Distillation from A Stronger Teacher (Huang et al. 2022, arXiv 2205.10536).

    ``L = CE + T^2 (beta inter + gamma intra)``: the probabilities need only correlate with the teacher's, over the
    classes of each sample (inter) and over the samples of each class (intra). The defaults are those for CIFAR-100; the
    paper's ImageNet recipe has a temperature of 1. The second part wants a batch of many samples.

    Args:
        beta: weight of the relation between classes.
        gamma: weight of the relation between samples.
        temperature: T, softens both distributions, here and in the soft targets if there are any.
    """

    couples_samples = True

    def __init__(self, *, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0, **rest: Any) -> None:
        super().__init__(temperature=temperature, **rest)
        self.beta = beta
        self.gamma = gamma

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"inter", "intra"}``, the second over the global batch."""
        rows = seen.together()
        s, t = rows.all(seen.student), rows.all(seen.teacher)
        return {
            "inter": Term.of(dist_inter(seen.student, seen.teacher, temperature=self.temperature), weight=self.beta),
            "intra": Term.of(rows.own(dist_intra(s, t, temperature=self.temperature)), weight=self.gamma),
        }
