"""Stored teacher outputs: filled once, memory-mapped, looked up by sample id and view.

A cache is a directory: ``manifest.json`` (what it holds and for whom) and shards of raw little-endian columns. It is
tied to the teacher's content hash and to the fingerprint of the data source, and refuses to serve for any other.
Filling is bounded by a byte budget that is checked before anything is written, and goes on at the first missing shard
when it was cut off.

    spec = CacheSpec(mode="topk", k=32, views=4, budget="2GB")
    cache = fill(directory, teacher, source, spec, {"logits"}, batch_size=256)
    cache.verify(teacher, source)
    topk = cache.lookup(batch["id"], batch["view"]).logits_topk

Distributions of next tokens have modes of their own, ``packed`` and ``sampled``: a row is found by its tokens, so one
cache serves all data that holds the same rows (:func:`~limbeck.engine.cache.token_writer.fill_tokens`).
"""

from limbeck.engine.cache.budget import check_budget, estimate
from limbeck.engine.cache.reader import NotCachedError, TeacherCache
from limbeck.engine.cache.spec import BY_TOKENS, CacheSpec, format_bytes, parse_bytes
from limbeck.engine.cache.token_reader import TokenCache
from limbeck.engine.cache.token_writer import estimate_tokens, fill_tokens
from limbeck.engine.cache.writer import fill

__all__ = [
    "BY_TOKENS",
    "CacheSpec",
    "NotCachedError",
    "TeacherCache",
    "TokenCache",
    "check_budget",
    "estimate",
    "estimate_tokens",
    "fill",
    "fill_tokens",
    "format_bytes",
    "parse_bytes",
]
