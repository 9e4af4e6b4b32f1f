"""On-policy distillation by policy gradient: the teacher says only how likely each sampled token is."""

from __future__ import annotations

from torch import Tensor

from limbeck.engine.method import Batch, Term
from limbeck.language.policy import PolicyMethod, of_tokens, surrogate
from limbeck.registry import register


@register("method")
class OPD(PolicyMethod):
    """``-(q / q_old) A`` per token of the student's own text, ``A = log p(y_t) - log q_old(y_t)``.

    Qwen3's report (arXiv 2505.09388) and Thinking Machines, "On-Policy Distillation" (2025). No rewards of later
    tokens, no baseline. At the first update its gradient in expectation over a token is that of ``KL(q || p)`` at this
    token's prefix: that of ``gkd`` with the reverse divergence on the same text. Neither follows how a token changes
    the prefixes after it (``minillm`` does).
    """

    needs = {"teacher": {"logits"}}
    live = True
    dial = "heat"

    def terms(self, batch: Batch, old: Tensor | None = None) -> dict[str, Term]:
        """The term ``policy``."""
        rollout = self.rows(batch)
        logits, labels = self.next_tokens(rollout.batch)
        own, theirs = self.alike(logits, self.teacher.compute(rollout.batch).logits[:, :-1])
        logprobs = of_tokens(own, labels)
        old = logprobs.detach() if old is None else old
        worth = of_tokens(theirs, labels) - old
        return {"policy": self.term(-surrogate(logprobs, old, worth, self.clip), labels)}
