"""Distillation from a few tokens of the teacher's distribution: its likeliest, or some that are drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Clock, Term, Update
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.losses import cut
from limbeck.language.losses.sparse import naive_topk, narrowed, renormalised_topk, tail_topk
from limbeck.losses import cross_entropy
from limbeck.models.forward import Signals
from limbeck.registry import register
from limbeck.truncated import Sampled, sampled_cross_entropy, sampled_of, topk_of

LOSSES = {"tail": tail_topk, "renormalise": renormalised_topk, "naive": naive_topk}


@register("method")
class SparseKD(TokenMethod):
    """``(1 - alpha) CE(y, q) + alpha T^2 D`` per token, where D looks at few of the teacher's tokens.

    Anshumann et al. 2025 (arXiv 2503.16870). ``sampled`` is ``-sum w_i log q_i`` over tokens drawn from the teacher,
    weighed so that its expectation has the gradient of the whole KL. The others see the k likeliest: ``tail`` puts the
    rest into one bucket (a true KL), ``renormalise`` and ``naive``, for comparison, do not tell the student that there
    is a rest, and make it too sure. With a cache of mode ``packed`` (or ``topk``) the teacher's likeliest tokens are
    the stored ones, with ``sampled`` the draws are; without one, both are taken from the teacher in each step.

    Args:
        mode: which tokens are looked at, and how.
        k: likeliest tokens, or as many as are stored.
        draws: tokens drawn in a step, with replacement; stored draws have their own number.
        proposal: exponent of the distribution that is drawn from; 1 is the teacher's own.
        alpha: weight of D, the rest is cross-entropy with the text.
        temperature: divides both logits.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    dial = "alpha"
    truncated = True
    sampled = True

    def __init__(
        self,
        *,
        mode: Literal["sampled", "tail", "renormalise", "naive"] = "sampled",
        k: int = 50,
        draws: int = 50,
        proposal: float = 1.0,
        alpha: float = 1.0,
        temperature: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, reduction=reduction, max_len=max_len)
        if k < 1 or draws < 1:
            raise UserError(f"method sparse_kd: k and draws must be at least 1, got {k} and {draws}")
        if not 0 <= proposal <= 2:
            raise UserError(f"method sparse_kd: proposal must be 0 to 2, got {proposal}")
        self.mode = mode
        self.k = k
        self.draws = draws
        self.proposal = proposal
        self.alpha = alpha

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        length = batch["labels"].shape[1] - 1
        draws = clock.uniform(batch["id"], (length, self.draws), "draws") if self.mode == "sampled" else None
        yield Update("student", self.terms(batch, draws))

    def terms(self, batch: Batch, draws: Tensor | None = None) -> dict[str, Term]:
        """The terms ``ce`` and ``kd``; one whose weight is zero is left out.

        Args:
            batch: rows of tokens.
            draws: [B, T - 1, draws] in [0, 1), for ``sampled`` where nothing is stored.
        """
        logits, labels = self.next_tokens(batch)
        values: dict[str, tuple[Tensor, float]] = {}
        if self.alpha < 1:
            values["ce"] = cross_entropy(logits, labels), 1 - self.alpha
        if self.alpha > 0:
            signals = self.teacher(batch)
            sparse = self._sampled(logits, signals, draws) if self.mode == "sampled" else self._topk(logits, signals)
            values["kd"] = sparse * self.temperature**2, self.alpha
        return {name: self.term(value, labels, weight) for name, (value, weight) in values.items()}

    def _topk(self, logits: Tensor, signals: Signals) -> Tensor:
        if "logits_topk" in signals:
            topk = narrowed(self._shifted(signals["logits_topk"], logits.shape[-1]), self.k)
            logits = cut(logits, topk.classes or logits.shape[-1])
        else:
            logits, teacher = self.alike(logits, self._whole(signals))
            topk = topk_of(teacher, min(self.k, teacher.shape[-1]), self.temperature)
        return LOSSES[self.mode](logits, topk)

    def _sampled(self, logits: Tensor, signals: Signals, draws: Tensor | None) -> Tensor:
        if "logits_sampled" in signals:
            stored: Sampled = signals["logits_sampled"]
            here = (slice(None), slice(None, -1))
            drawn = Sampled(stored.indices[here], stored.weights[here], stored.temperature, stored.classes)
            return sampled_cross_entropy(cut(logits, drawn.classes or logits.shape[-1]), drawn)
        logits, teacher = self.alike(logits, self._whole(signals))
        if draws is None:
            raise ValueError("mode 'sampled' without stored draws needs numbers to draw with")
        return sampled_cross_entropy(logits, sampled_of(teacher, draws, self.proposal, self.temperature))

    def _whole(self, signals: Signals) -> Tensor:
        """The teacher's logits, shifted.

        Raises:
            UserError: it gives, or its cache holds, something else than this mode learns from.
        """
        if "logits" not in signals:
            has = {"logits_topk": "likeliest tokens", "logits_sampled": "draws"}
            found = next((words for name, words in has.items() if name in signals), "nothing of use")
            fits = "sampled" if self.mode == "sampled" else "packed or topk"
            raise UserError(
                f"method sparse_kd in mode {self.mode} finds {found} of the teacher: set cache.mode to {fits}, or "
                "method.mode to what is stored"
            )
        return signals.logits[:, :-1]
