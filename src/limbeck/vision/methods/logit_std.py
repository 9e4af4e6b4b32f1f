"""Logit standardisation."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import Seen, Taught
from limbeck.vision.losses.logits import standardized_kl


@register("method")
class LogitStd(Taught):
    """Logit Standardization in Knowledge Distillation (Sun et al. 2024, arXiv 2403.01427).

    ``L = 0.1 CE + weight T^2 KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))`` with ``Z`` the z-score over the classes
    of a sample: the student need not have the range of the teacher's logits. The large weight is part of the recipe.

    Args:
        weight: of the standardised soft targets.
        ce_weight: weight of the labels.
        temperature: T, the base temperature (2 or 3 by the pair of models).
    """

    def __init__(self, *, weight: float = 9.0, ce_weight: float = 0.1, temperature: float = 2.0, **rest: Any) -> None:
        super().__init__(ce_weight=ce_weight, temperature=temperature, **rest)
        self.weight = weight

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"std"}``."""
        values = standardized_kl(seen.student, seen.teacher, temperature=self.temperature)
        return {"std": Term.of(values, weight=self.weight)}
