"""How well a language model predicts held-out text, how closely it follows its teacher, and what it writes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import Batch
from limbeck.errors import UserError
from limbeck.language.generate import continue_tokens, write
from limbeck.language.losses import cut, forward_kl, scored, shared_vocabulary, shift
from limbeck.language.rollouts import prompts_of
from limbeck.losses import IGNORE, cross_entropy, log_softmax
from limbeck.metrics.base import Evaluation, Scores, evaluating, on_device
from limbeck.registry import register

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
ANSWERED = 128
"""Prompts that are answered at once."""


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
    of the text too, which compare across tokenizers. The details hold the loss by position in the row.

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


@register("metric", task={"language"}, default=True)
def sample_texts(evaluation: Evaluation, *, samples: int = 3, tokens: int = 64, temperature: float = 1.0) -> Scores:
    """What the model writes after some prompts of the test text: ``texts`` in the details, for reading.

    A prompt is the given part of a row (all before its first label), or the first half of a block of text. Each entry
    has the prompt, what really follows, the likeliest continuation and a sampled one (the same for a seed).

    Args:
        evaluation: what is judged.
        samples: how many prompts, evenly spread over the test text.
        tokens: how many tokens to write.
        temperature: of the sampled continuation.

    Raises:
        UserError: the test source has no tokenizer to read the tokens with.
    """
    source = evaluation.test
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UserError("sample_texts needs a test source with a tokenizer, such as data 'text'")
    rows = torch.linspace(0, len(source) - 1, min(samples, len(source))).round().long()
    texts = []
    for row in rows.split(1):
        batch = on_device(source.batch(row), evaluation.device)
        texts.append(_write(evaluation, batch, tokenizer, tokens, temperature))
    return Scores({}, {"texts": texts})


@register(
    "metric",
    task={"language"},
    better={"exact_match": "higher"},
    labels={"exact_match": ("Right answers", "%")},
)
def exact_match(
    evaluation: Evaluation, *, samples: int = 256, tokens: int | None = None, temperature: float = 0.0
) -> Scores:
    """Share of test prompts whose continuation ends in the right number, written by the model itself.

    The answer of a text is its last number, so that working before it does not count (GSM8K's answers end likewise).

    Args:
        evaluation: what is judged.
        samples: how many prompts, evenly spread over the test rows.
        tokens: how many tokens to write at most; by default what a row has room for.
        temperature: 0 takes the likeliest token each time.

    Raises:
        UserError: the test source has no tokenizer, or a row has no number to find.
    """
    source = evaluation.test
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UserError("exact_match needs a test source with a tokenizer, such as data 'arithmetic'")
    chosen = torch.linspace(0, len(source) - 1, min(samples, len(source))).round().long()
    right = 0
    for rows in chosen.split(ANSWERED):
        batch = on_device(source.batch(rows), evaluation.device)
        wanted = [final_number(_read(tokenizer, row[row != IGNORE])) for row in batch["labels"]]
        if None in wanted:
            raise UserError("exact_match: a test row's completion has no number, so there is no answer to compare with")
        found = [final_number(text) for text in _answers(evaluation, batch, tokenizer, tokens, temperature)]
        right += sum(a == b for a, b in zip(found, wanted, strict=True))
    return Scores({"exact_match": right / len(chosen)}, {"answered": len(chosen)})


def final_number(text: str) -> float | None:
    """The last number in a text, with its sign, fraction and thousands' commas; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _answers(evaluation: Evaluation, batch: Batch, tokenizer: Any, tokens: int | None, temperature: float) -> list[str]:
    prompts, mask = prompts_of(batch)
    context = batch["input_ids"].shape[1]
    with evaluating(evaluation.model):
        found = write(
            evaluation.model,
            prompts,
            tokens or context,
            mask=mask,
            context=context,
            temperature=temperature,
            ids=batch["id"],
            key=(evaluation.seed,),
            vocab_size=len(tokenizer),
            end=tokenizer.eos_token_id,
        )
    return [_read(tokenizer, row[kept]) for row, kept in zip(found.tokens, found.mask, strict=True)]


@dataclass
class _Sums:
    """Sums over the test text, in float64."""

    by_position: Tensor | float = 0.0
    count_by_position: Tensor | int = 0
    agree: float = 0.0
    kl: float = 0.0
    compared: int = 0
    characters: int = 0

    def add_loss(self, values: Tensor, mask: Tensor) -> None:
        self.by_position = self.by_position + values.double().masked_fill(~mask, 0.0).sum(0).cpu()
        self.count_by_position = self.count_by_position + mask.sum(0).cpu()

    def add_teacher(self, agree: Tensor, kl: Tensor) -> None:
        self.agree += float(agree.double().sum())
        self.kl += float(kl.double().sum())
        self.compared += len(kl)

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
        if self.compared:
            values["agreement"], values["teacher_kl"] = self.agree / self.compared, self.kl / self.compared
        curve = [float(s / n) if n else None for s, n in zip(losses, counts, strict=True)]
        return Scores(values, {"test_tokens": tokens, "nll_by_position": curve})


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
    """Whether both find the same token likeliest, and KL(teacher || model), at the positions that count: [N] each."""
    teacher, _ = shift(evaluation.run_teacher(batch).logits, batch["labels"])
    own = getattr(evaluation.model, "tokenizer_hash", None)
    other = getattr(evaluation.teacher.module, "tokenizer_hash", None) if evaluation.teacher else None
    tokens = evaluation.spec.vocab_size if evaluation.spec is not None else None
    width = shared_vocabulary(logits.shape[-1], teacher.shape[-1], own, other, tokens)
    log_p, log_q = (log_softmax(cut(each, width)[mask]) for each in (teacher, logits))
    return log_p.argmax(-1) == log_q.argmax(-1), forward_kl(log_p, log_q)


def _write(evaluation: Evaluation, batch: Batch, tokenizer: Any, tokens: int, temperature: float) -> dict[str, str]:
    row = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    given = int((batch["labels"][0] == -100).long().cumprod(0).sum())
    prompt, truth = row.split([given, len(row) - given] if given else [len(row) // 2, len(row) - len(row) // 2])

    def after(heat: float) -> str:
        with evaluating(evaluation.model):
            written = continue_tokens(
                evaluation.model,
                prompt[None],
                tokens,
                context=len(batch["input_ids"][0]),
                temperature=heat,
                ids=batch["id"],
                seed=evaluation.seed,
                vocab_size=len(tokenizer),
            )
        return _read(tokenizer, written[0])

    said = {"prompt": _read(tokenizer, prompt), "truth": _read(tokenizer, truth)}
    return {**said, "greedy": after(0.0), "sampled": after(temperature)}


def _read(tokenizer: Any, ids: Tensor) -> str:
    """The text up to the first end-of-text token."""
    ends = (ids == tokenizer.eos_token_id).nonzero() if tokenizer.eos_token_id is not None else ids.new_empty(0)
    kept = ids[: int(ends[0])] if len(ends) else ids
    return str(tokenizer.decode(kept.tolist()))
