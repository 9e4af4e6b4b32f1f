"""General on-policy logit distillation: what the student writes, judged by a teacher with any tokenizer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.language.alignment import vocabulary_match
from limbeck.language.cross import CrossMethod
from limbeck.language.crossing import at, span_sums
from limbeck.language.losses import divergence, sorted_l1
from limbeck.language.rollouts import RolloutMethod
from limbeck.losses import cross_entropy, log_softmax
from limbeck.registry import register

_NONE = -30.0
"""Log of the mass that a bucket is taken to have where rounding leaves it none."""


@register("method")
class GOLD(RolloutMethod, CrossMethod):
    """The divergence of span probabilities, merged by the chain rule; sorted distances where tokens have no match.

    Hugging Face 2025, "Unlocking On-Policy Distillation for Any Model Family"; trl's GOLDTrainer. On a span of the same
    text a model's mass is the distribution at one of its tokens times the probability of the others. The reference
    compares tokens with a match at the ends of spans even where the words before them differ, and by a divergence of
    measures that do not sum to one, which can fall below zero. Here tokens with a match are compared where both have
    read the same text (spans of one token), other spans by the probability of their text, and everything else is one
    more bucket, so that it is zero only where the student agrees.

    Args:
        weight: of the distillation.
        data_weight: of the cross-entropy with the rows; none in the reference.
        hybrid: tokens and spans that both know are compared by the divergence, and only the rest sorted.
        matched: share of the hybrid that the divergence has; by default the share of the teacher's tokens that the
            student knows.
        merge: the token of a span whose distribution is kept: the ``last``, or the ``first``.
        direction: the divergence of the hybrid.
        student_share: how often the rows are the student's own writing.
        heat: sampling temperature of that.
    """

    needs = {"teacher": {"logits"}}
    same_view = False
    live = True
    dial = "student_share"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        data_weight: float = 0.0,
        hybrid: bool = False,
        matched: float | None = None,
        merge: Literal["last", "first"] = "last",
        direction: Literal[
            "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "alpha", "hellinger"
        ] = "jsd",
        student_share: float = 0.5,
        heat: float = 0.9,
        **rest: Any,
    ) -> None:
        super().__init__(direction=direction, student_share=student_share, heat=heat, **rest)
        self.weight = weight
        self.data_weight = data_weight
        self.hybrid = hybrid
        self.matched = matched
        self.merge = merge

    def setup(self, parts: Parts) -> None:
        """Match the tokens that both vocabularies have.

        Raises:
            UserError: a teacher with another tokenizer is to write the rows, or a share is none.
        """
        super().setup(parts)
        if self.bridges and self.teacher_share:
            raise UserError("teacher_share: a teacher with another tokenizer cannot continue the student's prompts")
        if self.matched is not None and not 0 <= self.matched <= 1:
            raise UserError(f"matched must be between 0 and 1, got {self.matched}")
        if "teacher" in self.bridges:
            bridge = self.bridges["teacher"]
            self.pairs = torch.tensor(vocabulary_match(bridge.student, bridge.teacher)).view(-1, 2)
            known = sum(part is not None for part in bridge.teacher.vocabulary)
            self.known = len(self.pairs) / max(known, 1)

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``uld`` or, in the hybrid, ``matched`` and ``uld``; and ``ce`` where it has a weight."""
        rollout = self.rows(batch)
        logits, labels = self.next_tokens(rollout.batch)
        crossing = self.cross(rollout.batch)
        theirs = self.asked(crossing).logits[:, :-1]
        ours, theirs = self.fitting(logits, theirs)
        log_q, q_all = self.merged(ours, rollout.batch, crossing.student)
        log_p, p_all = self.merged(theirs, crossing.batch, crossing.teacher)
        q, p, share = log_q.exp(), log_p.exp(), 0.0
        pairs = self._pairs(log_q.shape[-1], log_q.device)
        if self.hybrid:
            share = self.matched if self.matched is not None else self._overlap()
            q, p = (_without(x, pairs[:, i]) for i, x in enumerate((q, p)))
        terms = {}
        if share > 0:
            same = self.same(log_p, log_q, p_all, q_all, crossing.single, pairs)
            terms["matched"] = self.span_term(same, crossing, weight=self.weight * share)
        if share < 1 and p.shape[-1] + q.shape[-1]:
            terms["uld"] = self.span_term(sorted_l1(p, q), crossing, weight=self.weight * (1 - share))
        if self.data_weight > 0:
            terms["ce"] = self.term(cross_entropy(logits, labels), labels, self.data_weight)
        return terms

    def merged(self, logits: Tensor, batch: Batch, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mass of spans [B, S, V] over one token's vocabulary, and that of their text alone [B, S]."""
        log_q = log_softmax(logits, self.temperature)
        tokens = log_q.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        whole = span_sums(tokens, spans)
        index = spans[..., 1] - 1 if self.merge == "last" else spans[..., 0]
        index = index.clamp(min=1)
        return at(log_q, index) + (whole - at(tokens, index))[..., None], whole

    def same(self, log_p: Tensor, log_q: Tensor, p_all: Tensor, q_all: Tensor, single: Tensor, pairs: Tensor) -> Tensor:
        """The divergence over what both can say, and one bucket of all else, [B, S]."""
        ours = _with_rest(log_q[..., pairs[:, 0]]), _with_rest(q_all[..., None])
        theirs = _with_rest(log_p[..., pairs[:, 1]]), _with_rest(p_all[..., None])
        options = {"beta": self.beta, "skew": self.skew, "alpha": self.order}
        tokens, text = (divergence(p, q, self.direction, **options) for p, q in zip(theirs, ours, strict=True))
        return torch.where(single, tokens, text)

    def _pairs(self, width: int, device: torch.device) -> Tensor:
        if "teacher" in self.bridges:
            return self.pairs.to(device)
        return torch.arange(width, device=device)[:, None].expand(-1, 2)

    def _overlap(self) -> float:
        return self.known if "teacher" in self.bridges else 1.0

    def health(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """That of the rows that were written."""
        return dict(super().health(self.rows(batch).batch, clock))


def _with_rest(logs: Tensor) -> Tensor:
    """Log-masses [..., K] and the log of what they leave of 1, as a distribution [..., K + 1]."""
    mass = torch.logsumexp(logs, -1, keepdim=True).clamp(max=-1e-7)
    rest = torch.log(-torch.expm1(mass)).clamp(min=_NONE)
    return torch.log_softmax(torch.cat([logs, rest], -1), -1)


def _without(values: Tensor, columns: Tensor) -> Tensor:
    """The values of all other columns."""
    kept = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device)
    kept[columns] = False
    return values[..., kept]
