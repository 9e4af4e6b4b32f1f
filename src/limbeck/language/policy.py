"""Policy gradients per token: the student is rewarded for what its teacher would have written too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Term, Update
from limbeck.language.losses import cut, shift
from limbeck.language.rollouts import Rollout, RolloutMethod
from limbeck.losses import log_softmax, same_shape
from limbeck.models.forward import forward


def surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float | None = None) -> Tensor:
    """``rho A`` with ``rho = exp(logprobs - old)``, or the smaller of it and ``clamp(rho, 1 - clip, 1 + clip) A``.

    At ``logprobs == old`` its gradient is ``A`` times that of ``logprobs`` (Schulman et al. 2017, 1707.06347, eq. 7).

    Args:
        logprobs: of the tokens under the student, any shape, with gradient.
        old: under the student that wrote them, the same shape.
        advantages: what each token is worth, the same shape; no gradient flows into it.
        clip: how far the ratio may go before it is of no more use; None for as far as it likes.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(logprobs=logprobs, old=old, advantages=advantages)
    ratio, worth = torch.exp(logprobs - old.detach()), advantages.detach()
    if clip is None:
        return ratio * worth
    return torch.minimum(ratio * worth, ratio.clamp(1 - clip, 1 + clip) * worth)


def to_go(rewards: Tensor, mask: Tensor, *, own: bool = True, mean: bool = False) -> Tensor:
    """What is still to come at each token: the sum over those after it in its row, [B, T].

    Args:
        rewards: [B, T].
        mask: bool [B, T], the tokens that count; elsewhere the result is 0.
        own: a token's own reward counts too.
        mean: the mean in place of the sum; 0 where nothing comes.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(rewards=rewards, mask=mask)
    kept = rewards.masked_fill(~mask, 0.0)
    sums = kept.flip(1).cumsum(1).flip(1) - (0 if own else kept)
    if mean:
        here = mask.long()
        sums = sums / (here.flip(1).cumsum(1).flip(1) - (0 if own else here)).clamp(min=1)
    return sums.masked_fill(~mask, 0.0)


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of given tokens, logits [..., V] and int64 [...] -> [...]; of token 0 where one is negative."""
    return log_softmax(logits).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]


class PolicyMethod(RolloutMethod):
    """Base of the methods that follow a policy gradient on rows that are written anew for each step.

    Args:
        inner_updates: steps of the optimizer on each batch of rows.
        old_from: log-probabilities that the ratio is taken to: computed anew by the ``trainer`` before the first
            update, or those that the ``sampler`` drew with.
        clip: of the ratio; None for none.
        new_tokens: how many tokens are written at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        heat: sampling temperature.
        top_p: sample from the fewest tokens that have this much of the mass.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    live = True

    def __init__(
        self,
        *,
        inner_updates: int = 1,
        old_from: Literal["trainer", "sampler"] = "trainer",
        clip: float | None = None,
        new_tokens: int = 64,
        prompt: int | None = None,
        heat: float = 1.0,
        top_p: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(
            student_share=1.0,
            new_tokens=new_tokens,
            prompt=prompt,
            heat=heat,
            top_p=top_p,
            reduction=reduction,
            max_len=max_len,
        )
        self.inner_updates = inner_updates
        self.old_from = old_from
        self.clip = clip

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Several updates of the student on the same rows."""
        old = self.old(self.rows(batch))
        for _ in range(self.inner_updates):
            yield Update("student", partial(self.terms, batch, old))

    def terms(self, batch: Batch, old: Tensor | None = None) -> dict[str, Term]:
        """The named losses; ``old`` [B, T-1] are log-probabilities under the student that wrote the rows."""
        raise NotImplementedError

    @torch.no_grad()
    def old(self, rollout: Rollout) -> Tensor | None:
        """Log-probabilities [B, T-1] that the first update finds; None where that update computes them itself."""
        if self.old_from == "sampler":
            return rollout.logprobs[:, 1:]
        if self.inner_updates == 1:
            return None
        logits, labels = shift(forward(self.student, rollout.batch).logits, rollout.batch["labels"])
        width = min(logits.shape[-1], self.tokens or logits.shape[-1])
        return of_tokens(cut(logits, width), labels)
