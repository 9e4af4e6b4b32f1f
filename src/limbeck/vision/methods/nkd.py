"""Normalised knowledge distillation."""

from __future__ import annotations

from typing import Any

from limbeck.engine.method import Term
from limbeck.registry import register
from limbeck.vision.base import Seen, Taught
from limbeck.vision.losses.logits import nkd_others, nkd_target


@register("method")
class NKD(Taught):
    """From Knowledge Distillation to Self-Knowledge Distillation (Yang et al. 2023, arXiv 2303.13005): its loss NKD.

    ``L = CE - p_t(y) log p_s(y) - gamma T^2 sum_{k != y} N(p_t)_k log N(p_s)_k`` with ``N`` the probabilities among the
    classes other than the label, renormalised to sum to 1. Samples without a label teach nothing.

    Args:
        gamma: weight of the other classes.
        temperature: T, softens the other classes alone; the target has none.
    """

    def __init__(self, *, gamma: float = 1.5, temperature: float = 1.0, **rest: Any) -> None:
        super().__init__(temperature=temperature, **rest)
        self.gamma = gamma

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"target", "others"}``; two terms, so that each one's share is seen."""
        target = nkd_target(seen.student, seen.teacher, seen.labels)
        others = nkd_others(seen.student, seen.teacher, seen.labels, self.temperature)
        weight = self.gamma * self.temperature**2
        return {
            "target": Term.of(target, seen.labelled, unit="labelled"),
            "others": Term.of(others, seen.labelled, weight=weight, unit="labelled"),
        }
