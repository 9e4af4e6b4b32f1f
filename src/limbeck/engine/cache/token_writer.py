"""Filling a cache of tokens: the rows that it lacks, shard by shard, each in place whole or not at all.

A run that was cut off and a run on other data are the same to it: what is there stays, what is missing is added.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.cache.format import (
    MANIFEST,
    MAX_SHARDS,
    SHARD_BYTES,
    save_manifest,
    shard_path,
    sync_directory,
)
from limbeck.engine.cache.packing import Packing
from limbeck.engine.cache.reader import moved, remember_verified
from limbeck.engine.cache.spec import CacheSpec, format_bytes
from limbeck.engine.cache.token_reader import TokenCache, live_value
from limbeck.engine.cache.tokens import (
    Coding,
    TokenManifest,
    TokenShard,
    learnt,
    load_token_manifest,
    owned,
    places,
    row_keys,
)
from limbeck.engine.cache.writer import Computes, check_disk, disk_errors, exclusive
from limbeck.errors import UserError
from limbeck.truncated import TopK

_LOGITS = 1 << 26
"""Numbers that a batch of logits may have, where the rows are cut for it."""
_ROW_BYTES = 24


def fill_tokens(
    directory: Path | str,
    teacher: Computes,
    source: Source,
    spec: CacheSpec,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str | None = None,
) -> TokenCache:
    """Run the teacher over every row of text that the cache lacks, store its distributions, and open the result.

    Args:
        directory: of the cache; made if missing.
        teacher: gives ``logits`` [B, T, V] or ``logits_topk``.
        source: rows of tokens.
        spec: ``packed`` or ``sampled``, views and budget.
        batch_size: rows per call of the teacher, fewer where the vocabulary is large.
        progress: called with (rows done, rows in all).
        device: where batches are moved before the teacher is called.

    Raises:
        UserError: over the budget; disk full; no tokens; logits that are not finite; the directory holds another
            cache or is being filled by another process.
    """
    directory = Path(directory)
    spec_of = source.spec
    tokenizer = spec_of.tokenizer_hash or ""
    found = load_token_manifest(directory) if (directory / MANIFEST).exists() else None
    if found is not None:
        own = spec_of.vocab_size or found.coding.classes
        owned(found, directory, teacher.hash, tokenizer, min(own, found.coding.classes))
        _same_coding(directory, found.coding, Coding.of(spec, found.coding.classes))
    todo = _Todo.of(directory, found, source, spec, batch_size)
    if found is None or todo.rows:
        filler = _Filler(directory, teacher, source, spec, progress, device)
        with disk_errors(directory), exclusive(directory):
            filler.write(found, todo, tokenizer, batch_size)
    cache = TokenCache.open(directory, teacher_hash=teacher.hash, tokenizer=tokenizer)
    for warning in cache.warnings:
        warnings.warn(warning, stacklevel=2)
    return cache


def _same_coding(directory: Path, found: Coding, wanted: Coding) -> None:
    if found != wanted:
        here, there = (", ".join(f"{k} {v}" for k, v in c.model_dump().items() if v) for c in (wanted, found))
        raise UserError(f"the teacher cache at {directory} holds {there}; wanted is {here}: use another directory")


@dataclass
class _Todo:
    """The rows that are missing: (view, row) of each, and how many tokens they have together."""

    rows: list[tuple[int, int]]
    tokens: int
    done: int

    @classmethod
    def of(
        cls, directory: Path, found: TokenManifest | None, source: Source, spec: CacheSpec, batch_size: int
    ) -> _Todo:
        count = len(source)
        if not count:
            raise UserError("there is nothing to cache: the data is empty")
        there = _whole(directory, found)
        known = TokenCache(directory, there) if there is not None else None
        seen: set[bytes] = set()
        todo = cls([], 0, 0)
        for view in spec.view_numbers:
            for rows in torch.arange(count).split(max(batch_size, 1)):
                batch = source.batch(rows, view)
                keys, sizes = row_keys(batch), learnt(batch).sum(1).tolist()
                held = known.holds(keys).tolist() if known is not None else [False] * len(keys)
                for row, key, size, have in zip(rows.tolist(), keys, sizes, held, strict=True):
                    if have or key.tobytes() in seen:
                        todo.done += 1
                        continue
                    seen.add(key.tobytes())
                    todo.rows.append((view, row))
                    todo.tokens += size
        return todo

    def batches(self, size: Callable[[], int]) -> Iterator[tuple[int, Tensor]]:
        """Rows of one view at a time, at most ``size()``."""
        start = 0
        while start < len(self.rows):
            view = self.rows[start][0]
            rows = [row for v, row in self.rows[start : start + size()] if v == view]
            yield view, torch.tensor(rows)
            start += len(rows)


def _whole(directory: Path, found: TokenManifest | None) -> TokenManifest | None:
    """The manifest up to the first shard whose file is gone or cut off: what follows is filled again."""
    if found is None:
        return None
    kept: list[TokenShard] = []
    for index, shard in enumerate(found.shards):
        path = shard_path(directory, index)
        if not path.exists() or path.stat().st_size != places(shard, found.coding)[1]:
            break
        kept.append(shard)
    return found.model_copy(update={"shards": tuple(kept)})


@dataclass
class _Buffer:
    """What goes into the next shard."""

    keys: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)
    records: list[np.ndarray] = field(default_factory=list)
    entries: list[np.ndarray] = field(default_factory=list)
    facts: list[np.ndarray] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for parts in (self.keys, self.sizes, self.records, self.entries) for a in parts)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The parts of the shard, and the facts of its tokens."""
        return tuple(np.concatenate(p) for p in (self.keys, self.sizes, self.records, self.entries, self.facts))


@dataclass
class _Filler:
    """Writes the rows that are missing."""

    directory: Path
    teacher: Computes
    source: Source
    spec: CacheSpec
    progress: Callable[[int, int], None] | None
    device: torch.device | str | None
    coding: Coding | None = None

    def write(self, found: TokenManifest | None, todo: _Todo, tokenizer: str, batch_size: int) -> None:
        """Ask the teacher for all missing rows and put them in place."""
        for left_over in self.directory.glob("*.tmp"):
            left_over.unlink()
        manifest, buffer, done, limit = _whole(self.directory, found), _Buffer(), todo.done, 0
        self.coding = manifest.coding if manifest is not None else None
        for view, rows in todo.batches(partial(self._size, batch_size)):
            batch = moved(self.source.batch(rows, view), self.device)
            with torch.no_grad():
                signals = self.teacher(batch)
            if manifest is None:
                coding = self.coding = Coding.of(self.spec, self._classes(signals))
                manifest = TokenManifest(teacher=self.teacher.hash, tokenizer=tokenizer, coding=coding)
            self._add(buffer, manifest.coding, batch, signals)
            limit = limit or self._afford(manifest, buffer, todo)
            done += len(rows)
            if buffer.nbytes >= limit:
                manifest, buffer = self._flush(manifest, buffer), _Buffer()
            if self.progress is not None:
                self.progress(done, todo.done + len(todo.rows))
        if manifest is not None and (buffer.keys or found is None or len(found.shards) > len(manifest.shards)):
            self._flush(manifest, buffer) if buffer.keys else save_manifest(self.directory, manifest)

    def _size(self, batch_size: int) -> int:
        """Rows of the next batch: two while the vocabulary is not known."""
        if self.coding is None:
            return min(2, batch_size)
        length = (self.source.spec.shape or (1,))[0]
        return max(1, min(batch_size, _LOGITS // (length * self.coding.classes)))

    def _classes(self, signals: dict[str, Any]) -> int:
        """Width of the distributions: the teacher's, without padding beyond the tokenizer's entries."""
        own = self.source.spec.vocab_size
        if "logits_topk" in signals:
            classes: int | None = signals["logits_topk"].classes or own
            if classes is None:
                raise UserError("the teacher tells its likeliest tokens, and neither it nor the data says of how many")
            return classes
        value = signals.get("logits")
        if not isinstance(value, Tensor):
            got = ", ".join(sorted(signals)) or "nothing"
            raise UserError(f"cache modes packed and sampled need logits of the teacher; it gives {got}")
        return min(value.shape[-1], own or value.shape[-1])

    def _add(self, buffer: _Buffer, coding: Coding, batch: dict[str, Any], signals: dict[str, Any]) -> None:
        """Encode the learnt tokens of a batch."""
        here, keys = learnt(batch), row_keys(batch)
        sizes = here.sum(1).cpu()
        value = live_value(signals, here, coding.classes)
        if coding.kind == "sampled" and not isinstance(value, Tensor):
            raise UserError(
                "cache mode sampled draws from whole distributions, and this teacher tells its likeliest tokens"
            )
        names = torch.as_tensor(keys[:, 0].copy()).repeat_interleave(sizes).to(here.device)
        parts = [coding.encode(*piece) for piece in _pieces(value, names, here.nonzero()[:, 1], coding.classes)]
        counts = sizes.numpy().astype("<u4")
        entries = np.zeros_like(counts)
        records, tail, facts = (
            torch.cat([p[i] for p in parts]).cpu().numpy() if parts else np.zeros((0, width), dtype)
            for i, (width, dtype) in enumerate([(coding.widths[0], np.uint8), (coding.widths[1], np.uint8), (3, float)])
        )
        if coding.kind == "sampled" and len(records):
            each = coding.drawing.sizes(torch.from_numpy(records)).numpy()
            ends = np.concatenate([[0], each.cumsum()])[np.concatenate([[0], counts.astype(np.int64).cumsum()])]
            entries = np.diff(ends).astype("<u4")
        buffer.keys.append(keys)
        buffer.sizes.append(np.stack([counts, entries], 1))
        buffer.records.append(records)
        buffer.entries.append(tail)
        buffer.facts.append(facts)

    def _afford(self, manifest: TokenManifest, buffer: _Buffer, todo: _Todo) -> int:
        """Bytes of a shard, once what is to come, told from the first rows, fits budget and disk.

        Raises:
            UserError: it does not.
        """
        coding, there = manifest.coding, sum(s.bytes for s in manifest.shards)
        tokens = sum(len(r) for r in buffer.records)
        each = (sum(r.nbytes for r in (*buffer.records, *buffer.entries)) / tokens) if tokens else sum(coding.widths)
        size = round(there + todo.tokens * each + len(todo.rows) * _ROW_BYTES)
        if size > self.spec.budget_bytes:
            raise UserError(
                f"the teacher cache needs about {format_bytes(size)} ({todo.tokens} tokens x {each:.0f} bytes), over "
                f"the budget of {format_bytes(self.spec.budget_bytes)}; {self._leaner(coding, todo, each, there)}"
            )
        check_disk(self.directory, size - there)
        return max(SHARD_BYTES, size // MAX_SHARDS)

    def _leaner(self, coding: Coding, todo: _Todo, each: float, there: int) -> str:
        room = (self.spec.budget_bytes - there - len(todo.rows) * _ROW_BYTES) / max(todo.tokens, 1)
        if coding.kind == "packed":
            fits = [k for k in range(1, coding.k) if Packing(coding.classes, k, coding.bits).bytes <= room]
            return f"k up to {fits[-1]} would fit" if fits else "no k fits: raise the budget"
        return f"fewer draws would fit: {room:.0f} bytes a token are left for them"

    def _flush(self, manifest: TokenManifest, buffer: _Buffer) -> TokenManifest:
        """Put a shard in place, then list it."""
        *parts, facts = buffer.arrays()
        index = len(manifest.shards)
        sums = facts.sum(0) if len(facts) else np.zeros(3)
        shard = TokenShard(
            bytes=0, sha256="", rows=len(parts[0]), tokens=len(parts[2]), entries=len(parts[3]),
            covered=sums[0], lost=sums[1], most_lost=float(facts[:, 1].max(initial=0.0)), kept=sums[2],
        )  # fmt: skip
        starts, size = places(shard, manifest.coding)
        there = sum(s.bytes for s in manifest.shards)
        if there + size > self.spec.budget_bytes:
            raise UserError(
                f"the teacher cache passed its budget of {format_bytes(self.spec.budget_bytes)} with "
                f"{format_bytes(there + size)}; the finished shards are kept: raise the budget and run again"
            )
        content = bytearray(size)
        for start, part in zip(starts, parts, strict=True):
            raw = np.ascontiguousarray(part).tobytes()
            content[start : start + len(raw)] = raw
        _place(shard_path(self.directory, index), content)
        shard = shard.model_copy(update={"bytes": size, "sha256": hashlib.sha256(content).hexdigest()})
        manifest = manifest.model_copy(update={"shards": (*manifest.shards, shard)})
        save_manifest(self.directory, manifest)
        remember_verified(self.directory, {index: shard.sha256})
        return manifest


def _place(path: Path, content: bytes | bytearray) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _pieces(
    value: Tensor | TopK, names: Tensor, positions: Tensor, classes: int
) -> Iterator[tuple[Tensor | TopK, Tensor, Tensor]]:
    """Tokens in pieces whose distributions, in float64, stay small."""
    step = max(1, _LOGITS // 8 // classes)
    for start in range(0, len(names), step):
        cut = slice(start, start + step)
        if isinstance(value, Tensor):
            yield value[cut], names[cut], positions[cut]
        else:
            part = TopK(value.indices[cut], value.logprobs[cut], value.log_tail[cut], value.temperature, value.classes)
            yield part, names[cut], positions[cut]


def estimate_tokens(spec: CacheSpec, classes: int, tokens: int, rows: int) -> int:
    """Bytes of a cache of so many learnt tokens, exactly for ``packed``; at most, for ``sampled``."""
    coding = Coding.of(spec, classes)
    record, entry = coding.widths
    most = min(coding.draws, classes) * entry if coding.kind == "sampled" else 0
    return tokens * (record + most) + rows * _ROW_BYTES
