"""How likely generated token sequences are to a judge that counts, and how varied they are."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from limbeck.data import load_data
from limbeck.diffusion.metrics.sequences import generated
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import DataBlock, register

SHOWN = 6
"""Texts that the report shows."""


class CountingJudge:
    """An autoregressive model of tokens by counts of what followed each context, backing off to shorter ones.

    ``p(x | c) = (n(c x) + d(c) p(x | c')) / (n(c) + d(c))`` with c' the context without its first token and d(c) the
    number of different tokens seen after c (Witten and Bell 1991), down to a uniform law.

    Args:
        rows: token sequences.
        tokens: of the vocabulary.
        order: length of the longest context.
    """

    def __init__(self, rows: Sequence[Sequence[int]], tokens: int, order: int = 4) -> None:
        self.tokens = tokens
        self.order = order
        self.after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for row in rows:
            for i, token in enumerate(row):
                for length in range(min(order, i) + 1):
                    self.after[tuple(row[i - length : i])][token] += 1
        self.sums = {context: counts.total() for context, counts in self.after.items()}

    def probability(self, context: Sequence[int], token: int) -> float:
        """Of a token after a context."""
        found = 1 / self.tokens
        given = tuple(context)[max(0, len(context) - self.order) :]
        for length in range(len(given) + 1):
            counts = self.after.get(given[len(given) - length :])
            if counts is None:
                break
            seen = self.sums[given[len(given) - length :]]
            found = (counts[token] + len(counts) * found) / (seen + len(counts))
        return found

    def nll(self, row: Sequence[int]) -> float:
        """Nats per token of a sequence."""
        return -sum(math.log(self.probability(row[:i], x)) for i, x in enumerate(row)) / len(row)


@register(
    "metric",
    task={"generation", "language"},
    better={"text_nll": "lower", "text_entropy": "higher", "text_gap": "lower", "text_nfe": "lower"},
    labels={
        "text_nll": ("Generated text to an autoregressive judge", "nats per token"),
        "text_entropy": ("Entropy of the tokens within a text", "nats"),
        "text_gap": ("Entropy missing against the data's texts", "nats"),
        "text_nfe": ("Network evaluations per text", ""),
    },
)
def text_judge(evaluation: Evaluation, *, data: DataBlock, samples: int = 400, order: int = 4) -> Scores:
    """Negative log-likelihood of generated texts under counts of the data's, with the entropy that shows cheating.

    Texts that say one word again and again are likely; so the entropy of the tokens within a text, averaged over texts,
    stands beside, and what it lacks of that of real ones.

    Args:
        evaluation: what is judged: a generator of sequences of the data's tokens.
        data: the text that the judge counts in (its training part) and compares entropies with (its test part).
        samples: texts to draw.
        order: tokens that the judge looks back.

    Raises:
        UserError: the data is no text of the generator's tokens.
    """
    source = load_data(data)
    model: Any = evaluation.model
    tokens = int(getattr(getattr(model, "net", model), "tokens", 0))
    if source.train is None or source.test is None or source.spec.vocab_size != tokens:
        says = f"{source.spec.vocab_size} tokens" if source.spec.vocab_size else "none"
        raise UserError(f"text_judge needs text of the generator's {tokens} tokens, and the data has {says}")
    judge = CountingJudge(_rows(source.train), tokens, order)
    made = generated(evaluation, samples).clamp_max(tokens - 1).tolist()
    nll = sum(judge.nll(row) for row in made) / len(made)
    own, real = (sum(entropy(row) for row in rows) / len(rows) for rows in (made, _rows(source.test)))
    nfe = model.nfe if hasattr(model, "nfe") else model.length
    words = source.extra.get("tokenizer")
    shown = [words.decode(row) for row in made[:SHOWN]] if words is not None else []
    values = {"text_nll": nll, "text_entropy": own, "text_gap": real - own, "text_nfe": nfe}
    return Scores(values, {"texts": shown})


def entropy(row: Sequence[int]) -> float:
    """Of the tokens of a sequence, in nats."""
    counts = torch.tensor(list(Counter(row).values()), dtype=torch.float64)
    law = counts / counts.sum()
    return -float((law * law.log()).sum())


def _rows(source: Any) -> list[list[int]]:
    rows: list[list[int]] = source.batch(torch.arange(len(source)))["input_ids"].tolist()
    return rows
