"""How fast a language model reads and writes, and what its key-value cache takes."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.language.generate import Reader
from limbeck.metrics.base import Evaluation, Scores, evaluating, on_device
from limbeck.metrics.efficiency import timings
from limbeck.registry import register


@register(
    "metric",
    task={"language"},
    better={"prefill_tokens_s": "higher", "decode_tokens_s": "higher", "cache_bytes_per_token": "lower"},
    labels={
        "prefill_tokens_s": ("Reading a prompt", "tokens/s"),
        "decode_tokens_s": ("Writing", "tokens/s"),
        "cache_bytes_per_token": ("Key-value cache per token", "bytes"),
    },
)
def decoding_speed(
    evaluation: Evaluation, *, batch_size: int = 1, tokens: int = 32, repeats: int = 20, seconds: float = 1.0
) -> Scores:
    """Tokens per second in reading prompts (all at once) and in writing after them (one by one, with a cache).

    The prompts are the first halves of test rows. Times are medians over repeats after a warm-up, with as many threads
    as the process has. A model that keeps no cache is timed as it is, reading its text anew for every token.

    Args:
        evaluation: what is measured.
        batch_size: rows at once.
        tokens: how many tokens to write in a repeat, at most what the context has room for.
        repeats: measurements, at most.
        seconds: time to spend on each of the two, about.

    Raises:
        UserError: an argument is not positive.
    """
    if min(batch_size, tokens, repeats) < 1 or seconds <= 0:
        raise UserError("decoding_speed needs positive numbers for batch_size, tokens, repeats and seconds")
    rows = torch.arange(batch_size) % len(evaluation.test)
    context = evaluation.test.batch(rows[:1])["input_ids"].shape[1]
    half = max(1, context // 2)
    prompts: Tensor = on_device(evaluation.test.batch(rows)["input_ids"][:, :half], evaluation.device)
    there, written = torch.ones_like(prompts, dtype=torch.bool), min(tokens, context - half)
    last: list[Reader] = []

    def read() -> Reader:
        reader = Reader(evaluation.model, prompts, there, context)
        reader.logits()
        return reader

    def read_and_write() -> None:
        reader = read()
        for _ in range(written):
            reader.add(prompts[:, -1])
            reader.logits()
        last[:] = [reader]

    how: dict[str, Any] = {"repeats": repeats, "seconds": seconds, "device": evaluation.device}
    with evaluating(evaluation.model):
        reading = statistics.median(timings(read, **how))
        both = statistics.median(timings(read_and_write, **how))
    values = {
        "prefill_tokens_s": prompts.numel() / reading,
        "decode_tokens_s": batch_size * written / max(both - reading, 1e-9),
    }
    if last[0].cache is not None:
        values["cache_bytes_per_token"] = _bytes(last[0].cache) / (batch_size * (half + written))
    return Scores(values, {"threads": torch.get_num_threads(), "prompt_tokens": half, "written_tokens": written})


def _bytes(cache: Any) -> int:
    """Bytes of the keys and values of every layer of a transformers cache."""
    kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in kept if isinstance(t, Tensor))
