"""How well a language model predicts held-out text, and how closely it follows its teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.base import Batch
from limbeck.errors import UserError
from limbeck.language.losses import cut, forward_kl, scored, shared_vocabulary, shift
from limbeck.losses import cross_entropy, log_softmax
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import register


@register(
    "metric",
    task={"language"},
    default=True,
    better={
        "perplexity": "lower",
        "nll_per_token": "lower",
        "bits_per_token": "lower",
        "bits_per_character": "lower",
        "agreement": "higher",
        "teacher_kl": "lower",
    },
    labels={
        "perplexity": ("Perplexity", ""),
        "nll_per_token": ("Negative log-likelihood per token", "nats"),
        "bits_per_token": ("Bits per token", "bits"),
        "bits_per_character": ("Bits per character", "bits"),
    },
)
def perplexity(evaluation: Evaluation) -> Scores:
    """Negative log-likelihood of the test text per token, as nats, bits and perplexity; and closeness to the teacher.

    Every predicted token that has a label counts once, whatever the batch size. With a teacher it also gives the share
    of positions where both find the same token likeliest (``agreement``) and the mean KL(teacher || model) in nats
    (``teacher_kl``), over the vocabulary they share. Where the source has its tokenizer there are bits per character
    of the text too, which compare across tokenizers. The details hold the loss, and
    the divergence from the teacher, by position in the row.

    Raises:
        UserError: no test text, nothing in it to predict, a loss that is not finite, or a teacher with another
            tokenizer.
    """
    sums = _Sums()
    tokenizer = getattr(evaluation.test, "tokenizer", None)
    for batch in evaluation.batches():
        logits, labels = shift(_logits(evaluation, batch), batch["labels"])
        mask = scored(labels)
        sums.add_loss(cross_entropy(logits, labels), mask)
        if evaluation.teacher is not None:
            sums.add_teacher(*_beside_teacher(evaluation, batch, logits, mask))
        if tokenizer is not None:
            sums.characters += sum(len(tokenizer.decode(row[kept])) for row, kept in zip(labels, mask, strict=True))
    return sums.scores(evaluation)


@dataclass
class _Sums:
    """Sums over the test text, in float64."""

    by_position: Tensor | float = 0.0
    count_by_position: Tensor | int = 0
    agree: float = 0.0
    kl_by_position: Tensor | float = 0.0
    compared: bool = False
    characters: int = 0

    def add_loss(self, values: Tensor, mask: Tensor) -> None:
        self.by_position = self.by_position + values.double().masked_fill(~mask, 0.0).sum(0).cpu()
        self.count_by_position = self.count_by_position + mask.sum(0).cpu()

    def add_teacher(self, agree: Tensor, kl: Tensor) -> None:
        self.agree += float(agree.double().sum())
        self.kl_by_position = self.kl_by_position + kl.double().sum(0).cpu()
        self.compared = True

    def scores(self, evaluation: Evaluation) -> Scores:
        losses, counts = torch.as_tensor(self.by_position), torch.as_tensor(self.count_by_position)
        total, tokens = float(losses.sum()), int(counts.sum())
        if not tokens:
            raise UserError("the test text has no token to predict: all its labels are -100")
        if not math.isfinite(total):
            raise UserError(f"{evaluation.title} gives a loss that is not finite on the test text")
        nll = total / tokens
        values = {"perplexity": math.exp(min(nll, 700.0)), "nll_per_token": nll, "bits_per_token": nll / math.log(2)}
        if self.characters:
            values["bits_per_character"] = total / math.log(2) / self.characters
        details = {"test_tokens": tokens, "nll_by_position": _means(losses, counts)}
        if self.compared:
            apart = torch.as_tensor(self.kl_by_position)
            values |= {"agreement": self.agree / tokens, "teacher_kl": float(apart.sum()) / tokens}
            details["kl_by_position"] = _means(apart, counts)
        return Scores(values, details)


def _means(sums: Tensor, counts: Tensor) -> list[float | None]:
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def _logits(evaluation: Evaluation, batch: Batch) -> Tensor:
    signals = evaluation.run(batch)
    if "logits" not in signals:
        raise UserError(f"{evaluation.title} gives no logits to judge; it gives {', '.join(sorted(signals))}")
    # A model that hands out a view of a parameter would bring its gradient along, even here.
    logits: Tensor = signals.logits.detach()
    if logits.ndim != 3:
        raise UserError(
            f"{evaluation.title} gives logits of shape {list(logits.shape)}; a language model's are [B, T, V]"
        )
    return logits


def _beside_teacher(evaluation: Evaluation, batch: Batch, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Whether both find the same token likeliest, and KL(teacher || model), [B, T-1] each; 0 where nothing counts."""
    log_p, log_q = beside(evaluation, batch, logits)
    agree = (log_p.argmax(-1) == log_q.argmax(-1)) & mask
    return agree, forward_kl(log_p, log_q).masked_fill(~mask, 0.0)


def beside(evaluation: Evaluation, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the teacher and of the model (whose shifted logits these are) over the tokens they share.

    Raises:
        UserError: their tokenizers differ.
    """
    teacher, _ = shift(evaluation.run_teacher(batch).logits, batch["labels"])
    own = getattr(evaluation.model, "tokenizer_hash", None)
    other = getattr(evaluation.teacher.module, "tokenizer_hash", None) if evaluation.teacher else None
    tokens = evaluation.spec.vocab_size if evaluation.spec is not None else None
    width = shared_vocabulary(logits.shape[-1], teacher.shape[-1], own, other, tokens)
    return log_softmax(cut(teacher, width)), log_softmax(cut(logits, width))
