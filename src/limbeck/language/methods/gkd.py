"""Generalised knowledge distillation: the teacher corrects what the student itself writes."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.engine.method import Batch, Term
from limbeck.language.rollouts import RolloutMethod
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class GKD(RolloutMethod):
    """``D(p || q)`` per token on rows that the student wrote (a share of the steps), or on fixed ones.

    Agarwal et al. 2023, "On-Policy Distillation of Language Models" (arXiv 2306.13649), algorithm 1: no gradient goes
    through the sampling. The student had better be fine-tuned already, so that what it writes is worth correcting.

    Args:
        data_weight: of the cross-entropy with the text, in the steps that have the data's rows; none in the paper.
    """

    needs = {"teacher": {"logits"}}
    live = True
    dial = "student_share"

    def __init__(
        self,
        *,
        direction: Literal[
            "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "alpha", "hellinger"
        ] = "jsd",
        data_weight: float = 0.0,
        **rest: Any,
    ) -> None:
        super().__init__(direction=direction, **rest)
        self.data_weight = data_weight

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``kd`` and, where asked for, ``ce``."""
        rollout = self.rows(batch)
        logits, labels = self.next_tokens(rollout.batch)
        terms = {"kd": self.term(self.divergence(logits, self.teacher.compute(rollout.batch)), labels)}
        if rollout.source == "data" and self.data_weight > 0:
            terms["ce"] = self.term(cross_entropy(logits, labels), labels, self.data_weight)
        return terms
