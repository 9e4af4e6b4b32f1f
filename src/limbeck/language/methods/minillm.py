"""MiniLLM: the reverse KL between whole texts by policy gradient, with three stabilisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Term
from limbeck.language.losses import reverse_kl
from limbeck.language.policy import PolicyMethod, of_tokens, surrogate, to_go
from limbeck.language.rollouts import Rollout, Source, of_kind
from limbeck.losses import cross_entropy, log_softmax
from limbeck.registry import register


@register("method")
class MiniLLM(PolicyMethod):
    """``-w min(rho R, clip(rho) R)`` per token, beside the exact ``w KL(q || p)`` there and the loss of the text.

    Gu et al. 2023, "Knowledge Distillation of Large Language Models" (arXiv 2306.08543), section 2.2. ``R`` is what
    ``log p - log q`` comes to over the later tokens, ``w`` the ratio of ``q`` to what a token was drawn from. Without
    mixture, normalisation, clipping and text its gradient is in expectation that of ``KL(q || p)`` over whole texts.
    The student had better be fine-tuned already.

    Args:
        single_step: a token's own reward enters exactly, over the whole vocabulary; otherwise it is part of ``R``.
        teacher_mix: share of the teacher in the mixture that tokens are drawn from.
        length_norm: ``R`` is the mean over the later tokens, not their sum, which favours short texts.
        clip: of the ratio; None for none.
        text_weight: of the cross-entropy with the data's own rows.
    """

    needs = {"teacher": {"logits"}}
    same_view = False
    live = True
    dial = "text_weight"

    def __init__(
        self,
        *,
        single_step: bool = True,
        teacher_mix: float = 0.2,
        length_norm: bool = True,
        clip: float | None = 0.2,
        text_weight: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(clip=clip, **rest)
        self.single_step = single_step
        self.teacher_mix = teacher_mix
        self.length_norm = length_norm
        self.text_weight = text_weight

    def written(
        self,
        modules: nn.Module | Mapping[nn.Module, float],
        batch: Batch,
        clock: Clock,
        source: Source = "student",
        name: str = "rollout",
    ) -> Rollout:
        """The prompts continued by student and teacher together."""
        if isinstance(modules, nn.Module) and self.teacher_mix > 0:
            modules = {modules: 1 - self.teacher_mix, self.teacher.module: self.teacher_mix}
        return super().written(modules, batch, clock, source, name)

    def terms(self, batch: Batch, old: Tensor | None = None) -> dict[str, Term]:
        """The terms ``long``, ``single`` and ``text``; those that are switched off are left out."""
        rollout = self.rows(batch)
        logits, labels = self.next_tokens(rollout.batch)
        own, theirs = self.alike(logits, self.teacher.compute(rollout.batch).logits[:, :-1])
        logprobs = of_tokens(own, labels)
        old = logprobs.detach() if old is None else old
        weight = torch.exp(old - rollout.logprobs[:, 1:])
        rewards = of_tokens(theirs, labels) - old
        ahead = to_go(rewards, labels >= 0, own=not self.single_step, mean=self.length_norm)
        terms = {"long": self.term(-weight * surrogate(logprobs, old, ahead, self.clip), labels)}
        if self.single_step:
            exact = reverse_kl(log_softmax(theirs), log_softmax(own))
            terms["single"] = self.term(weight * exact, labels)
        if self.text_weight > 0:
            logits, labels = self.next_tokens(batch)
            terms["text"] = of_kind("text", self.term(cross_entropy(logits, labels), labels, self.text_weight))
        return terms

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds what the data's own rows have."""
        return {**super().count(batch), **self.count_of(text=batch)}
