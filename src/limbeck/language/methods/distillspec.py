"""DistillSpec: a draft model is distilled on its own text, so that the target accepts what it proposes."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.engine.method import Batch, Term
from limbeck.language.rollouts import RolloutMethod
from limbeck.registry import register


@register("method")
class DistillSpec(RolloutMethod):
    """``D(p || q)`` per token, on text that the draft wrote, the target's, or the data's; p is the target.

    Zhou et al. 2023, "DistillSpec: Improving Speculative Decoding via Knowledge Distillation" (arXiv 2310.08461,
    algorithm 1). With ``tvd`` the loss is one minus the acceptance rate itself. Which divergence serves best depends on
    the task and the decoding; the paper tries ``forward``, ``reverse``, ``jsd`` and ``tvd``. The draft had better be
    able to write already: on-policy text of an untrained one teaches little.
    """

    needs = {"teacher": {"logits"}}
    live = True
    dial = "student_share"

    def __init__(
        self,
        *,
        direction: Literal[
            "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "alpha", "hellinger"
        ] = "tvd",
        **rest: Any,
    ) -> None:
        super().__init__(direction=direction, **rest)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``kd``."""
        rows = self.rows(batch).batch
        logits, labels = self.next_tokens(rows)
        return {"kd": self.term(self.divergence(logits, self.teacher.compute(rows)), labels)}
