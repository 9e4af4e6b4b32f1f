"""Text of a Markov chain whose law is known exactly: how far a model is from the truth can be computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Data, DataSpec
from limbeck.data.text import TokenRows
from limbeck.engine.noise import normal, uniform
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register

ALPHABET = ".abcdefghijklmnopqrstuvwxyzABCDE"
"""The first of them ends a text."""
STATES = 1 << 20


@dataclass(frozen=True)
class Chain:
    """A law of texts: the next symbol depends on the last few. Before a text stand as many ends of text.

    Attributes:
        symbols: how many there are; number 0 ends a text.
        order: how many symbols back the next one depends on.
        sharpness: standard deviation of the logits: 0 makes all symbols alike, 3 nearly certain.
        end: probability that a text ends, at each symbol.
        seed: of the logits.
    """

    symbols: int
    order: int
    sharpness: float
    end: float
    seed: int

    def table(self) -> Tensor:
        """Log-probabilities of the next symbol in each state, float32 [symbols^order, symbols]."""
        states = torch.arange(self.symbols**self.order)
        drawn = self.sharpness * normal(states, (self.symbols - 1,), (self.seed, "markov"))
        goes_on = torch.log_softmax(drawn, -1) + math.log1p(-self.end)
        return torch.cat([torch.full((len(states), 1), math.log(self.end)), goes_on], dim=1)

    def states(self, tokens: Tensor) -> Tensor:
        """The state after each token of rows that begin a text, int64 [B, T] -> [B, T]."""
        padded = F.pad(tokens, (self.order - 1, 0))
        length = tokens.shape[1]
        found = torch.zeros_like(tokens)
        for back in range(self.order):
            found = found * self.symbols + padded[:, back : back + length]
        return found

    def draw(self, ids: Tensor, length: int) -> Tensor:
        """Texts of up to ``length`` symbols, int64 [B, length]; 0 from the end of the text on."""
        table = self.table().exp().cumsum(-1)
        chance = uniform(ids, (length,), (self.seed, "markov text"))
        state, ended = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        found = []
        for step in range(length):
            place = torch.searchsorted(table[state], chance[:, step : step + 1].contiguous())
            symbol = place[:, 0].clamp(max=self.symbols - 1).masked_fill(ended, 0)
            found.append(symbol)
            ended = ended | (symbol == 0)
            state = (state * self.symbols + symbol) % self.symbols**self.order
        return torch.stack(found, 1)


@register("data")
def markov(
    *,
    train_size: int = 2000,
    test_size: int = 300,
    val_size: int = 0,
    symbols: int = 16,
    order: int = 2,
    sharpness: float = 1.5,
    end: float = 0.02,
    context: int = 32,
    law_seed: int = 0,
    seed: int = 0,
) -> Data:
    """Texts of a Markov chain over letters, each a row of its own; the model ``markov_oracle`` is the exact law.

    Args:
        train_size, test_size, val_size: rows of the parts.
        symbols: how many letters there are, with the one that ends a text.
        order: how many letters back the next one depends on.
        sharpness: standard deviation of the logits of the next letter.
        end: probability that a text ends, at each letter.
        context: letters in a row; longer texts are cut.
        law_seed: which chain it is.
        seed: which texts are drawn from it.

    Raises:
        UserError: a number is out of range.
    """
    if not 3 <= symbols <= len(ALPHABET) or order < 1 or symbols**order > STATES:
        raise UserError(
            f"data 'markov': symbols must be 3 to {len(ALPHABET)} and symbols ** order at most {STATES:,}, "
            f"got {symbols} and order {order}"
        )
    if not 0 < end < 1 or sharpness < 0 or context < 2 or train_size < 1 or min(test_size, val_size) < 0:
        says = f"end {end}, sharpness {sharpness}, context {context}, sizes {train_size}, {test_size}, {val_size}"
        raise UserError(f"data 'markov': end must be inside (0, 1), context 2 or more, the rest not negative: {says}")
    chain = Chain(symbols, order, float(sharpness), float(end), law_seed)
    words = tokenizers.symbol_tokenizer(ALPHABET[:symbols], ALPHABET[0])
    known = tokenizers.tokenizer_hash(words)
    spec = DataSpec("language", (context,), vocab_size=symbols, tokenizer_hash=known, licence="public domain")
    parts, first = {}, 0
    for name, size in (("train", train_size), ("val", val_size), ("test", test_size)):
        if size:
            ids = torch.arange(first, first + size)
            # Texts of unlike seeds are unlike, of one seed the same whatever the sizes of other parts' rows.
            rows = chain.draw(ids + (seed << 32), context)
            parts[name] = _rows(rows, ids, spec, words)
        first += size
    extra = {"tokenizer": words, "chain": chain}
    return Data(spec, parts["train"], parts.get("test"), parts.get("val"), extra=extra)


def _rows(tokens: Tensor, ids: Tensor, spec: DataSpec, words: object) -> TokenRows:
    """Rows up to and with the end of each text; what follows is not learnt."""
    ended = (tokens == 0).long().cumsum(1)
    there = (ended - (tokens == 0).long()) == 0
    labels = tokens.masked_fill(~there, IGNORE)
    return TokenRows(tokens.int(), labels.int(), there, ids, spec, words)
