"""Word-level knowledge distillation: the teacher's whole next-token distribution at every position of fixed text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.losses import cut, scored, shared_vocabulary, shift, token_divergence, token_term
from limbeck.losses import cross_entropy
from limbeck.models.forward import Signals, forward
from limbeck.registry import register


@register("method")
class WordKD(Method):
    """``(1 - alpha) CE(y, q) + alpha T^2 D(p_T || q_T)`` per token, teacher-forced on the text of the data.

    Hinton et al. 2015 (arXiv 1503.02531); Kim and Rush 2016 (arXiv 1606.07947). A teacher whose vocabulary is padded to
    another width is cut to the tokens that both know; one with another tokenizer is refused.

    Args:
        alpha: weight of the divergence, the rest is cross-entropy with the text.
        temperature: divides both logits; 1 suits language models.
        direction: the divergence. A stored top-k teacher has ``forward`` and ``reverse``.
        beta: of ``jsd``; 0 is forward, 1 reverse.
        skew: of the skewed ones.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"teacher": {"logits"}}

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        direction: Literal["forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd"] = "forward",
        beta: float = 0.5,
        skew: float = 0.1,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        self.alpha = alpha
        self.temperature = temperature
        self.direction: Any = direction
        self.beta = beta
        self.skew = skew
        self.reduction: Any = reduction
        self.max_len = max_len

    def setup(self, parts: Parts) -> None:
        """The student learns; a teacher with another tokenizer is refused before any training."""
        super().setup(parts)
        spec = parts.data
        if spec is not None and spec.task != "language":
            raise UserError(f"method 'word_kd' learns from text; the data's task is {spec.task}")
        known = spec.tokenizer_hash if spec is not None else None
        self.tokenizers = (_tokenizer(parts.student, known), _tokenizer(self.teacher.module, known))
        self.tokens = spec.vocab_size if spec is not None else None
        if self.max_len is None and spec is not None and spec.shape:
            self.max_len = spec.shape[0] - 1
        shared_vocabulary(_width(parts.student), _width(self.teacher.module), *self.tokenizers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``ce`` and ``kd``; one whose weight is zero is left out."""
        logits, labels = shift(forward(self.student, batch).logits, batch["labels"])
        values: dict[str, tuple[Tensor, float]] = {}
        if self.alpha < 1:
            values["ce"] = cross_entropy(logits, labels), 1 - self.alpha
        if self.alpha > 0:
            values["kd"] = self.divergence(logits, self.teacher(batch)), self.alpha
        return {
            name: token_term(value, scored(labels), reduction=self.reduction, weight=weight, max_len=self.max_len)
            for name, (value, weight) in values.items()
        }

    def divergence(self, logits: Tensor, signals: Signals) -> Tensor:
        """Divergence from the teacher per token [B, T-1], from shifted student logits and the teacher's signals."""
        if "logits_topk" in signals:
            return self._truncated(logits, signals["logits_topk"])
        teacher = signals.logits[:, :-1]
        width = shared_vocabulary(logits.shape[-1], teacher.shape[-1], *self.tokenizers, self.tokens)
        return token_divergence(
            cut(logits, width),
            cut(teacher, width),
            direction=self.direction,
            temperature=self.temperature,
            beta=self.beta,
            skew=self.skew,
        )

    def _truncated(self, logits: Tensor, topk: Any) -> Tensor:
        from limbeck.truncated import TopK, truncated_kl

        if self.direction not in ("forward", "reverse"):
            raise UserError(f"a stored top-k teacher has direction forward or reverse, not {self.direction}")
        width = topk.classes or logits.shape[-1]
        if width > logits.shape[-1]:
            says = f"the stored top-k teacher has {width} tokens, the student {logits.shape[-1]}"
            raise UserError(f"{says}: a truncated distribution cannot be cut, so store it at the student's width")
        here = (slice(None), slice(None, -1))
        shifted = TopK(topk.indices[here], topk.logprobs[here], topk.log_tail[here], topk.temperature, topk.classes)
        return truncated_kl(cut(logits, width), shifted, self.direction, self.temperature) * self.temperature**2

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the sequences that have a token to learn, which ``seq_mean`` divides by."""
        return {**super().count(batch), "sequences": scored(batch["labels"][:, 1:]).any(1).sum()}


def _tokenizer(module: nn.Module, default: str | None) -> str | None:
    """Hash of the tokenizer a model was made with; a model that does not say was made with the data's."""
    return getattr(module, "tokenizer_hash", None) or default


def _width(module: nn.Module) -> int:
    return getattr(getattr(module, "config", None), "vocab_size", None) or 0
