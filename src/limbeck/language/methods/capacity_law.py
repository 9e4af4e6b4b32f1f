"""Distillation by the law of capacity gap: a teacher of about the right size, and a student cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.language.methods.word_kd import WordKD
from limbeck.registry import register

RATIO = 2.5
"""How many times the student's parameters the best teacher has, about, as the authors found."""


@register("method")
class CapacityLaw(WordKD):
    """``(1 - alpha) CE(y, q) + alpha T^2 KL(p_T || q_T)`` per token, with a teacher of about 2.5 times the student.

    Zhang et al. 2023, "Towards the Law of Capacity Gap in Distilling Language Models" (arXiv 2311.07052): for a fixed
    student the best teacher is neither the smallest nor the largest, and its size grows linearly with the student's.
    The student is cut out of the teacher (``student: {name: pruned, ...}``), which was trained on the text a little
    before (``finetune: true``). What the method adds is advice: the plan says how far the two sizes are from the law.
    To find the law for models of one's own, see :func:`limbeck.language.capacity.study`.

    Args:
        alpha: weight of the divergence, the rest is cross-entropy with the text; the authors' is not stated.
    """

    needs = {"teacher": {"logits"}}
    dial = "alpha"
    truncated = True

    def __init__(self, *, alpha: float = 0.5, **rest: Any) -> None:
        super().__init__(alpha=alpha, **rest)

    def says(self) -> Sequence[str]:
        """How large the teacher is for this student, and what the law asks for."""
        student = sum(p.numel() for p in self.student.parameters())
        found = self.teacher.parameters() / student
        return [f"the teacher has {found:.1f} times the student's parameters; the law asks for about {RATIO:g} times"]
