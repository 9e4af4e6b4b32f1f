"""Continuing token rows with any causal language model, or with a mixture of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.engine.noise import uniform
from limbeck.models.forward import forward, unwrapped

TINY = 1e-12


@dataclass(frozen=True)
class Written:
    """What was written after each prompt.

    Attributes:
        tokens: int64 [B, N]; 0 where ``mask`` is false.
        mask: bool [B, N]: true up to and with the end-of-text token.
        logprobs: float32 [B, N]: log-probability that each token was drawn with, at the sampling temperature; 0 where
            there is none. Of a greedy choice it is the one at temperature 1.
    """

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor


@torch.no_grad()
def write(
    modules: nn.Module | Mapping[nn.Module, float],
    prompts: Tensor,
    steps: int,
    *,
    context: int,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    ids: Tensor | None = None,
    key: Sequence[Any] = (0,),
    vocab_size: int | None = None,
    end: int | None = None,
    top_p: float = 1.0,
) -> Written:
    """Up to ``steps`` more tokens for each prompt, with a key-value cache where the model has one.

    A model sees the last ``context`` tokens each time. A row's draws depend on the key, its id and the step alone, so
    its text is the same in any batch.

    Args:
        modules: gives logits [B, T, V] for ``input_ids`` and ``attention_mask``; several with their shares draw from
            the mixture of their distributions (MiniLLM's teacher-mixed sampling).
        prompts: int64 [B, T], padded on the right where ``mask`` says so.
        steps: how many tokens to add at most.
        context: longest input of the models.
        mask: bool or int [B, T], which of the prompts' tokens are there; each row has at least one.
        temperature: 0 takes the likeliest token, otherwise samples from the tempered distribution.
        ids: int64 [B], a name for each row; by default its number.
        key: of the samples: any printable parts, such as (seed, step).
        vocab_size: never give a token beyond these (padding of the vocabulary).
        end: the end-of-text token, after which a row is done.
        top_p: draw from the fewest tokens that have this much of the mass (nucleus sampling).

    Raises:
        ValueError: the temperature is negative, ``top_p`` is not in (0, 1], or a prompt is empty.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be 0 or more and top_p in (0, 1], got {temperature} and {top_p}")
    there = torch.ones_like(prompts, dtype=torch.bool) if mask is None else mask.bool()
    if not bool(there.any(1).all()):
        raise ValueError("a prompt without a token cannot be continued")
    shares = {modules: 1.0} if isinstance(modules, nn.Module) else dict(modules)
    readers = [Reader(module, prompts, there, context) for module in shares]
    rows = torch.arange(len(prompts), device=prompts.device) if ids is None else ids
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(steps):
        log_q = _mixture([r.logits() for r in readers], list(shares.values()), temperature, vocab_size)
        log_q = _nucleus(log_q, top_p) if top_p < 1 else log_q
        token = log_q.argmax(-1) if temperature == 0 else _draw(log_q, rows, (*key, step, "continue"))
        logprob = log_q.gather(-1, token[:, None])[:, 0]
        found.append((token * open_rows, open_rows, logprob * open_rows))
        if end is not None:
            open_rows = open_rows & (token != end)
            if _all_done(open_rows):
                break
        if step + 1 < steps:
            for reader in readers:
                reader.add(token)
    tokens, kept, logprobs = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return Written(tokens, kept, logprobs)


def continue_tokens(
    module: nn.Module,
    prompts: Tensor,
    steps: int,
    *,
    context: int,
    temperature: float = 0.0,
    ids: Tensor | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Tensor:
    """Exactly ``steps`` more tokens for prompts of equal length, int64 [B, T] -> [B, steps]; see :func:`write`."""
    return write(
        module, prompts, steps, context=context, temperature=temperature, ids=ids, key=(seed,), vocab_size=vocab_size
    ).tokens


class Reader:
    """A causal model that reads rows token by token, each row of its own length.

    The rows are padded on the right, which no earlier token of a causal model sees; positions are given with the
    tokens, so that a row continues where it ended. Once a row is longer than the context, or where the model keeps no
    cache, the last ``context`` tokens are read anew each time.
    """

    def __init__(self, module: nn.Module, tokens: Tensor, mask: Tensor, context: int) -> None:
        self.module, self.context = module, context
        self.lengths = mask.sum(1)
        self.rows = _packed(tokens, mask)
        self.cached = bool(getattr(getattr(unwrapped(module), "config", None), "use_cache", False))
        self.cache: Any = None
        self.slots: Tensor | None = None

    def logits(self) -> Tensor:
        """Next-token logits after each row, float [B, V]."""
        longest = int(self.lengths.max())
        if longest > self.context:
            self.cache = None
            return self._read_anew()
        if not self.cached:
            return self._read_anew()
        return self._first() if self.cache is None else self._next()

    def add(self, token: Tensor) -> None:
        """Append one token to every row."""
        if self.rows.shape[1] <= int(self.lengths.max()):
            self.rows = torch.cat([self.rows, torch.zeros_like(self.rows[:, :1])], dim=1)
        self.rows.scatter_(1, self.lengths[:, None], token[:, None])
        self.lengths = self.lengths + 1

    def take(self, which: Tensor) -> None:
        """Keep these rows, int64 [B'], in this order; a row may be taken several times."""
        self.rows, self.lengths = self.rows[which], self.lengths[which]
        if self.cache is not None:
            assert self.slots is not None
            self.slots = self.slots[which]
            self.cache.reorder_cache(which)

    def _read_anew(self) -> Tensor:
        width = min(int(self.lengths.max()), self.context)
        kept = self.lengths.clamp(max=width)
        place = (self.lengths - kept)[:, None] + torch.arange(width, device=self.rows.device)
        tokens = self.rows.gather(1, place.clamp(max=self.rows.shape[1] - 1))
        mask = (torch.arange(width, device=self.rows.device) < kept[:, None]).long()
        return _at(forward(self.module, {"input_ids": tokens, "attention_mask": mask}).logits, kept - 1)

    def _first(self) -> Tensor:
        width = int(self.lengths.max())
        slots = torch.arange(width, device=self.rows.device)
        self.slots = (slots < self.lengths[:, None]).long()
        batch = {"input_ids": self.rows[:, :width], "attention_mask": self.slots}
        positions = slots.expand(len(self.rows), -1)
        found = forward(self.module, batch, use_cache=True, position_ids=positions)
        self.cache = found.get("past_key_values")
        self.cached = self.cache is not None
        return _at(found.logits, self.lengths - 1)

    def _next(self) -> Tensor:
        assert self.slots is not None
        self.slots = torch.cat([self.slots, torch.ones_like(self.slots[:, :1])], dim=1)
        place = (self.lengths - 1)[:, None]
        batch = {"input_ids": self.rows.gather(1, place), "attention_mask": self.slots}
        found = forward(self.module, batch, use_cache=True, position_ids=place, past_key_values=self.cache)
        self.cache = found["past_key_values"]
        return found.logits[:, -1]


def _packed(tokens: Tensor, mask: Tensor) -> Tensor:
    """Rows whose tokens begin at the left, in order."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return tokens.gather(1, order) * mask.gather(1, order)


def _at(logits: Tensor, place: Tensor) -> Tensor:
    """Logits [B, T, V] at one place of each row, [B, V]."""
    return logits[torch.arange(len(logits), device=logits.device), place]


def _mixture(logits: list[Tensor], shares: list[float], temperature: float, vocab_size: int | None) -> Tensor:
    """Log-probabilities [B, V] of the tempered mixture; at temperature 0 those at temperature 1."""
    width = min([each.shape[-1] for each in logits] + ([vocab_size] if vocab_size else []))
    heat = temperature or 1.0
    tempered = [torch.log_softmax(each[:, :width].float() / heat, dim=-1) for each in logits]
    if len(tempered) == 1:
        return tempered[0]
    logs = [math.log(share) if share > 0 else -math.inf for share in shares]
    weighed = [each + log for each, log in zip(tempered, logs, strict=True)]
    return torch.logsumexp(torch.stack(weighed), dim=0)


def _nucleus(log_q: Tensor, top_p: float) -> Tensor:
    """The distribution over the fewest likeliest tokens that have ``top_p`` of the mass."""
    ordered, order = log_q.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, -math.inf)
    return torch.log_softmax(torch.empty_like(log_q).scatter_(-1, order, ordered), dim=-1)


def _draw(log_q: Tensor, rows: Tensor, key: tuple[Any, ...]) -> Tensor:
    """The largest of log-probability + Gumbel noise is a draw."""
    u = uniform(rows, (log_q.shape[-1],), key).clamp(min=TINY)
    return (log_q - torch.log(-torch.log(u))).argmax(-1)


def _all_done(open_rows: Tensor) -> bool:
    """Whether no row is open in any process: a sharded model is only run by all of them together."""
    left = open_rows.any().long()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(left, op=dist.ReduceOp.MAX)
    return not bool(left)
