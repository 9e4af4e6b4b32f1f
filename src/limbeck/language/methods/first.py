"""FIRST: a teacher's five likeliest tokens, made to mean what they say before a student learns them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Parts, Term
from limbeck.errors import UserError
from limbeck.language.base import TokenMethod
from limbeck.language.losses import cut, scored
from limbeck.language.losses.sparse import narrowed, recalibrated
from limbeck.losses import cross_entropy, kl
from limbeck.metrics.base import on_device
from limbeck.metrics.classification import reliability_of
from limbeck.models.forward import Signals
from limbeck.registry import register
from limbeck.truncated import TopK, buckets, topk_of

HEATS = torch.logspace(-1.5, 0.5, 41).tolist()
"""Heats that are tried: at the first five tokens are all but one-hot, at the last all but even."""
ROWS = 2048
"""Validation rows that a heat is chosen on, at most."""


@register("method")
class First(TokenMethod):
    """``KL(r || q_k)`` over the teacher's k likeliest tokens, recalibrated to r, where q_k is the student's on them.

    Shum et al. 2024 (arXiv 2408.12168). With ``how: temperature``, r is ``softmax(p / heat)`` of the teacher's
    *probabilities*; the heat is by default that of lowest calibration error on the validation data.

    The released code has the student's side go through the same softmax of probabilities (``normalise: softmax``). Then
    its best reply is ``q_i - q_j = student_heat (p_i - p_j) / heat``, which a q in [0, 1] cannot give for a heat that
    makes r calibrated, and the student becomes too sure. So by default (``linear``) its probabilities are divided by
    their sum, and the best reply is r itself. Both leave open what the k tokens have together, which drifts in long
    training; ``bucket`` holds it to the teacher's by one bucket more, of all other tokens.

    Args:
        how: the teacher's side is reshaped; ``linear`` only divides by the sum.
        heat: of ``temperature``; by default chosen on the validation data.
        smoothing: of ``smoothing``: what the likeliest gives to the others.
        k: tokens kept.
        normalise: how the student's side is normalised over the k tokens, or a ``bucket`` for the rest beside them.
        student_heat: of the student's ``softmax``.
        alpha: weight of the divergence, the rest is cross-entropy with the text.
        reduction: mean over tokens, over sequences' means, or sum over a constant length; the paper sums over tokens.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}
    dial = "alpha"
    truncated = True

    def __init__(
        self,
        *,
        how: Literal["temperature", "smoothing", "linear"] = "temperature",
        heat: float | None = None,
        smoothing: float = 0.1,
        k: int = 5,
        normalise: Literal["linear", "softmax", "bucket"] = "linear",
        student_heat: float = 1.0,
        alpha: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "max_len",
        max_len: int | None = None,
    ) -> None:
        super().__init__(reduction=reduction, max_len=max_len)
        if k < 2:
            raise UserError(f"method first: k must be at least 2, got {k}")
        self.how = how
        self.heat = heat
        self.smoothing = smoothing
        self.k = k
        self.normalise = normalise
        self.student_heat = student_heat
        self.alpha = alpha
        self.chosen: float | None = None

    def setup(self, parts: Parts) -> None:
        """Chooses the heat, where none is given.

        Raises:
            UserError: there is no validation data to choose it on.
        """
        super().setup(parts)
        if self.how == "temperature" and self.heat is None:
            self.chosen = self._best_heat(next(iter(parts.held_out.values()), None))

    def says(self) -> list[str]:
        """The heat that was chosen."""
        return [] if self.chosen is None else [f"heat {self.chosen:.3g}, of lowest calibration error on validation"]

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce`` and ``kd``; one whose weight is zero is left out."""
        logits, labels = self.next_tokens(batch)
        values: dict[str, tuple[Tensor, float]] = {}
        if self.alpha < 1:
            values["ce"] = cross_entropy(logits, labels), 1 - self.alpha
        if self.alpha > 0:
            values["kd"] = self._compared(logits, self.kept(self.teacher(batch), logits.shape[-1])), self.alpha
        return {name: self.term(value, labels, weight) for name, (value, weight) in values.items()}

    def kept(self, signals: Signals, own: int) -> TopK:
        """The teacher's k likeliest tokens at each prediction [B, T - 1], of a vocabulary of ``own`` at most."""
        if "logits_topk" in signals:
            return narrowed(self._shifted(signals["logits_topk"], own), self.k)
        width = self.shared(own, signals.logits.shape[-1])
        teacher = cut(signals.logits[:, :-1], width)
        return topk_of(teacher, min(self.k, width))

    def targets(self, topk: TopK) -> Tensor:
        """Log-probabilities of the recalibrated teacher over its k tokens."""
        heat = self.heat if self.heat is not None else self.chosen
        return recalibrated(topk, self.how, heat=heat or 1.0, smoothing=self.smoothing)

    def _compared(self, logits: Tensor, topk: TopK) -> Tensor:
        log_p, log_q = buckets(cut(logits, topk.classes or logits.shape[-1]), topk)
        if self.normalise == "bucket":
            kept = log_p[..., : topk.k].logsumexp(-1, keepdim=True)
            return kl(torch.cat([self.targets(topk) + kept, log_p[..., topk.k :]], -1), log_q)
        log_q = log_q[..., : topk.k]
        scores = log_q if self.normalise == "linear" else log_q.exp() / self.student_heat
        return kl(self.targets(topk), scores.log_softmax(-1))

    @torch.no_grad()
    def _best_heat(self, source: object) -> float:
        if source is None:
            raise UserError(
                "method first chooses its heat on validation data, and there is none: give data a val part, or set "
                "method.heat"
            )
        device = next(self.student.parameters()).device
        known, right = [], []
        for rows in torch.arange(min(len(source), ROWS)).split(64):  # type: ignore[arg-type]
            batch = on_device(source.batch(rows), device)  # type: ignore[attr-defined]
            labels = batch["labels"][:, 1:]
            # A cache holds the training rows, so the teacher itself is asked.
            topk = self.kept(self.teacher.compute(batch), self.tokens or int(labels.max()) + 1)
            here = scored(labels)
            known.append(topk.logprobs[here])
            right.append(
                topk.indices[here].gather(-1, topk.logprobs[here].argmax(-1, keepdim=True))[:, 0] == labels[here]
            )
        logprobs, hits = torch.cat(known).cpu(), torch.cat(right).cpu()
        flat = TopK(torch.zeros_like(logprobs, dtype=torch.long), logprobs, logprobs[:, 0])

        def error(heat: float) -> float:
            return reliability_of(recalibrated(flat, heat=heat).exp().amax(-1), hits).error()

        return min(HEATS, key=error)
