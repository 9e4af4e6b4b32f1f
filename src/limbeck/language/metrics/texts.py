"""What a language model writes: for reading, for checking answers, and beside what its teacher would say of it."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import Batch
from limbeck.errors import UserError
from limbeck.language.generate import Written, continue_tokens, write
from limbeck.language.losses import forward_kl, reverse_kl, scored, shift
from limbeck.language.metrics.quality import beside
from limbeck.language.rollouts import joined, prompts_of
from limbeck.losses import IGNORE
from limbeck.metrics.base import Evaluation, Scores, evaluating, on_device
from limbeck.registry import register

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
AT_ONCE = 128
"""Prompts that are continued at once."""


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
    for rows in chosen.split(AT_ONCE):
        batch = on_device(source.batch(rows), evaluation.device)
        wanted = [final_number(_read(tokenizer, row[row != IGNORE])) for row in batch["labels"]]
        if None in wanted:
            raise UserError("exact_match: a test row's completion has no number, so there is no answer to compare with")
        written = _written(evaluation, batch, *prompts_of(batch), tokenizer, tokens, temperature)
        pairs = zip(written.tokens, written.mask, strict=True)
        found = [final_number(_read(tokenizer, row[kept])) for row, kept in pairs]
        right += sum(a == b for a, b in zip(found, wanted, strict=True))
    return Scores({"exact_match": right / len(chosen)}, {"answered": len(chosen)})


@register(
    "metric",
    task={"language"},
    better={
        "own_kl": "lower",
        "own_reverse_kl": "lower",
        "own_perplexity": "lower",
        "distinct": "higher",
    },
    labels={
        "own_kl": ("KL from the teacher on its own text", "nats"),
        "own_reverse_kl": ("KL to the teacher on its own text", "nats"),
        "own_perplexity": ("Perplexity of its text, says the teacher", ""),
        "distinct": ("Distinct n-grams in its text", "%"),
    },
)
def own_text(
    evaluation: Evaluation,
    *,
    samples: int = 256,
    tokens: int = 64,
    prompt: int | None = None,
    temperature: float = 1.0,
    ngram: int = 4,
) -> Scores:
    """How far the model is from its teacher on what it writes itself, where a model that only read others drifts off.

    After the test prompts it writes text of its own; at every token of that, both say what comes next. ``own_kl`` is
    the mean KL(teacher || model) there (exposure bias: compare it with ``teacher_kl`` on the test text),
    ``own_reverse_kl`` the mean KL(model || teacher), which at temperature 1 is the divergence of the two laws of whole
    texts per token. ``own_perplexity`` is what the teacher finds the text to be; ``distinct`` is the share of its
    n-grams that occur once or for the first time, which is all there is of a model without a teacher.

    Args:
        evaluation: what is judged.
        samples: how many prompts, evenly spread over the test rows.
        tokens: how many tokens to write at most.
        prompt: tokens of a plain row that are the prompt; by default half of it.
        temperature: of the sampling.
        ngram: length of what ``distinct`` counts.

    Raises:
        UserError: the test source has no tokenizer, or its rows leave no room to write.
    """
    source = evaluation.test
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UserError("own_text needs a test source with a tokenizer, such as data 'text'")
    chosen = torch.linspace(0, len(source) - 1, min(samples, len(source))).round().long()
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    pieces: list[tuple[int, ...]] = []
    for rows in chosen.split(AT_ONCE):
        batch = on_device(source.batch(rows), evaluation.device)
        prompts, mask = prompts_of(batch, prompt)
        found = _written(evaluation, batch, prompts, mask, tokenizer, tokens, temperature)
        own = joined(prompts, mask, found, batch, batch["input_ids"].shape[1]).batch
        count += int(scored(own["labels"]).sum())
        pieces += [tuple(row[i : i + ngram]) for row in _lists(found) for i in range(len(row) - ngram + 1)]
        if evaluation.teacher is not None:
            sums += _apart(evaluation, own)
    if not count:
        raise UserError("own_text: the test rows leave no room to write: make the context longer or the prompt shorter")
    scores: dict[str, float] = {}
    if evaluation.teacher is not None:
        scores["own_kl"], scores["own_reverse_kl"], surprise = (sums / count).tolist()
        scores["own_perplexity"] = math.exp(min(surprise, 700.0))
    if pieces:
        scores["distinct"] = len(set(pieces)) / len(pieces)
    return Scores(scores, {"own_tokens": count})


def _apart(evaluation: Evaluation, own: Batch) -> Tensor:
    """Sums over the written tokens: KL from the teacher, KL to it, and what it finds them to be; float64 [3]."""
    logits, labels = shift(evaluation.run(own).logits.detach(), own["labels"])
    log_p, log_q = beside(evaluation, own, logits)
    said = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    values = torch.stack([forward_kl(log_p, log_q), reverse_kl(log_p, log_q), said])
    return values[:, scored(labels)].double().sum(1).cpu()


def _lists(found: Written) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(found.tokens, found.mask, strict=True)]


def final_number(text: str) -> float | None:
    """The last number in a text, with its sign, fraction and thousands' commas; None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _written(
    evaluation: Evaluation,
    batch: Batch,
    prompts: Tensor,
    mask: Tensor,
    tokenizer: Any,
    tokens: int | None,
    temperature: float,
) -> Written:
    """What the model writes after the prompts of a batch."""
    context = batch["input_ids"].shape[1]
    with evaluating(evaluation.model):
        return write(
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
