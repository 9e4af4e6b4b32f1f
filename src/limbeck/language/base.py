"""What methods with a loss per token share: one vocabulary, shifted logits, masked positions, one way to average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.losses import (
    cut,
    scored,
    shared_vocabulary,
    shift,
    token_divergence,
    token_term,
    truncated_divergence,
)
from limbeck.models.forward import Signals, forward
from limbeck.truncated import TopK


class TokenMethod(Method):
    """Base of the methods that compare next-token distributions on rows of tokens. A subclass repeats ``needs``.

    Rows are right-padded; a label of -100 is not learnt (prompts, padding). A teacher whose vocabulary is padded to
    another width is cut to the tokens that both know; one with another tokenizer is refused.

    Args:
        direction: the divergence. Of a stored top-k teacher it is taken over its tokens and one bucket for the rest.
        temperature: divides both logits; 1 suits language models.
        beta: of ``jsd``; 0 is forward, 1 reverse.
        skew: of the skewed ones.
        order: of the ``alpha``-divergence; 1 is forward, 0 reverse.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    any_tokenizer = True  # setup compares them
    needs = {"teacher": {"logits"}}

    def __init__(
        self,
        *,
        direction: Literal[
            "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "alpha", "hellinger"
        ] = "forward",
        temperature: float = 1.0,
        beta: float = 0.5,
        skew: float = 0.1,
        order: float = 0.5,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        self.direction: Any = direction
        self.temperature = temperature
        self.beta = beta
        self.skew = skew
        self.order = order
        self.reduction: Any = reduction
        self.max_len = max_len

    def setup(self, parts: Parts) -> None:
        """The student learns; data without text and teachers with another tokenizer are refused before any training.

        Raises:
            UserError: either of these, or a temperature that is not positive.
        """
        super().setup(parts)
        if not self.temperature > 0:
            raise UserError(f"temperature must be positive, got {self.temperature}")
        spec = parts.data
        if spec is not None and spec.task != "language":
            name = type(self).__module__.rsplit(".", 1)[-1]
            raise UserError(f"method '{name}' learns from text; the data's task is {spec.task}")
        self.context = spec.shape[0] if spec is not None and spec.shape else None
        self.tokens = spec.vocab_size if spec is not None else None
        if self.max_len is None and self.context is not None:
            self.max_len = self.context - 1
        known = spec.tokenizer_hash if spec is not None else None
        self.tokenizers = {role: tokenizer_of(t.module, known) for role, t in self.teachers.items()}
        self.own_tokenizer = tokenizer_of(parts.student, known)
        for role, teacher in self.teachers.items():
            self.shared(width_of(parts.student), width_of(teacher.module), role)

    def shared(self, own: int, theirs: int, role: str = "teacher") -> int:
        """How many leading entries of the student's and a teacher's logits mean the same tokens.

        Raises:
            UserError: their tokenizers differ.
        """
        return shared_vocabulary(own, theirs, self.own_tokenizer, self.tokenizers[role], self.tokens)

    # -- one step ------------------------------------------------------------------------------------------------------

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student."""
        yield Update("student", self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The named losses of a batch of rows."""
        raise NotImplementedError

    def next_tokens(self, batch: Batch, module: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """The student's (or another model's) logits [B, T-1, V] and the tokens that they predict, int64 [B, T-1]."""
        return shift(forward(self.student if module is None else module, batch).logits, batch["labels"])

    def term(self, values: Tensor, labels: Tensor, weight: float = 1.0) -> Term:
        """The term of values per token [B, T-1] where there is a label."""
        return token_term(values, scored(labels), reduction=self.reduction, weight=weight, max_len=self.max_len)

    def divergence(self, logits: Tensor, signals: Signals, role: str = "teacher") -> Tensor:
        """Divergence from a teacher per token [B, T-1], times temperature squared.

        Args:
            logits: the student's, shifted [B, T-1, V].
            signals: the teacher's on the same rows: ``logits`` [B, T, V'] or ``logits_topk``.
            role: which teacher it is.
        """
        shape: Any = {"beta": self.beta, "skew": self.skew, "alpha": self.order}
        if "logits_topk" in signals:
            topk = self._shifted(signals["logits_topk"], logits.shape[-1])
            return truncated_divergence(cut(logits, topk.classes or logits.shape[-1]), topk, self.direction, **shape)
        student, teacher = self.alike(logits, signals.logits[:, :-1], role)
        return token_divergence(student, teacher, direction=self.direction, temperature=self.temperature, **shape)

    def alike(self, logits: Tensor, theirs: Tensor, role: str = "teacher") -> tuple[Tensor, Tensor]:
        """Both logits cut to the tokens that student and teacher share."""
        width = self.shared(logits.shape[-1], theirs.shape[-1], role)
        return cut(logits, width), cut(theirs, width)

    def _shifted(self, topk: TopK, own: int) -> TopK:
        """A stored teacher's predictions of all but the first token, if they fit a student of ``own`` tokens."""
        if topk.classes is not None and topk.classes > own:
            says = f"the stored top-k teacher has {topk.classes} tokens, the student {own}"
            raise UserError(f"{says}: a truncated distribution cannot be cut, so store it at the student's width")
        if not math.isclose(topk.temperature, self.temperature, rel_tol=1e-6):
            says = f"the stored top-k teacher was cut at temperature {topk.temperature:g}, not {self.temperature:g}"
            raise UserError(f"{says}: the shape of its tail is unknown, so fill the cache again")
        here = (slice(None), slice(None, -1))
        return TopK(topk.indices[here], topk.logprobs[here], topk.log_tail[here], topk.temperature, topk.classes)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the sequences that have a token to learn, which ``seq_mean`` divides by."""
        return {**super().count(batch), "sequences": scored(batch["labels"][:, 1:]).any(1).sum()}


def tokenizer_of(module: nn.Module, default: str | None) -> str | None:
    """Hash of the tokenizer a model was made with; a model that does not say was made with the data's."""
    return getattr(module, "tokenizer_hash", None) or default


def width_of(module: nn.Module) -> int:
    """Entries of a model's logits, as its configuration says; 0 where it says nothing."""
    return getattr(getattr(module, "config", None), "vocab_size", None) or 0
