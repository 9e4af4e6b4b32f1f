"""Next-token distributions that are found by the text: one row of tokens is one entry, wherever it stands.

An entry is named by a hash of its tokens and of which of them are learnt; padding does not count. So a cache serves any
data with the same rows, in any order, and one that was filled for some data is completed for other data by the rows
that are new. Only positions whose next token is learnt are stored.

A shard is, each part from a multiple of 64 bytes on: the names of its rows (16 bytes each), how many tokens and entries
each has (two uint32), the records of all tokens, the entries of all tokens (of draws, see
:mod:`~limbeck.engine.cache.draws`; packed ones, see :mod:`~limbeck.engine.cache.packing`, have none).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.engine.cache.draws import Draws
from limbeck.engine.cache.encoding import Column, Frozen
from limbeck.engine.cache.format import ALIGN, read_manifest, shard_path
from limbeck.engine.cache.packing import Packing
from limbeck.engine.cache.spec import CacheSpec
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.truncated import Sampled, TopK


class Coding(Frozen):
    """How the distribution of a token is stored."""

    kind: Literal["packed", "sampled"]
    classes: int
    k: int = 0
    bits: int = 0
    draws: int = 0
    proposal: float = 1.0
    seed: int = 0
    temperature: float = 1.0

    @classmethod
    def of(cls, spec: CacheSpec, classes: int) -> Coding:
        """What a spec asks for of distributions over that many tokens; no more than all of them are kept."""
        temperature = float(spec.temperature)
        if spec.mode == "packed":
            assert spec.k is not None
            return cls(kind="packed", classes=classes, k=min(spec.k, classes), bits=spec.bits, temperature=temperature)
        return cls(
            kind="sampled",
            classes=classes,
            draws=spec.draws,
            proposal=spec.proposal,
            seed=spec.seed,
            temperature=temperature,
        )

    @property
    def gives(self) -> str:
        """The name it is served under."""
        return "logits_topk" if self.kind == "packed" else "logits_sampled"

    @cached_property
    def packing(self) -> Packing:
        """Of the kind ``packed``."""
        return Packing(self.classes, self.k, self.bits)

    @cached_property
    def drawing(self) -> Draws:
        """Of the kind ``sampled``."""
        return Draws(self.classes, self.draws, self.proposal, self.seed)

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a token's record and of one of its entries."""
        return (
            (self.packing.bytes, 0) if self.kind == "packed" else (self.drawing.token_bytes, self.drawing.entry_bytes)
        )

    def encode(self, value: Tensor | TopK, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Records of tokens, their entries, and each token's facts: uint8 [n, w], uint8 [e, w'], float64 [n, 3].

        The facts are the mass that is kept, the divergence of what is stored from what was to be, and how many ids
        are stored.

        Args:
            value: the teacher's logits [n, V], or what it tells of its likeliest tokens.
            keys: int64 [n], of the rows.
            positions: int64 [n], of the tokens in their rows.
        """
        if self.kind == "packed":
            topk = topk_from(value, self)
            records = self.packing.pack(topk)
            facts = [topk.covered, lost(topk, self.packing.unpack(records)), torch.full_like(topk.log_tail, self.k)]
            return records, records.new_zeros(0, 0), torch.stack(facts, 1).double()
        assert isinstance(value, Tensor)
        drawn = self.drawing.draw(value, keys, positions, self.temperature)
        records, entries = self.drawing.pack(drawn)
        kept = torch.log_softmax(value.float() / self.temperature, -1).gather(-1, drawn.indices).exp()
        there = drawn.weights > 0
        facts = [(kept * there).sum(-1), torch.zeros(len(value), device=value.device), there.sum(-1)]
        return records, entries, torch.stack([f.double() for f in facts], 1)

    def decode(self, records: Tensor, entries: Tensor) -> TopK | Sampled:
        """The distributions of tokens, [n]."""
        if self.kind == "packed":
            return self.packing.unpack(records, self.temperature)
        return self.drawing.unpack(records, entries, self.temperature)


def topk_from(value: Tensor | TopK, coding: Coding) -> TopK:
    """The k likeliest of logits [n, V], or of a truncated distribution that has them.

    Raises:
        UserError: it keeps another number, or was cut at another temperature.
    """
    from limbeck.truncated import topk_of

    if isinstance(value, Tensor):
        return topk_of(value, coding.k, coding.temperature)
    if value.k != coding.k or value.temperature != coding.temperature:
        raise UserError(
            f"the teacher tells its {value.k} likeliest tokens at temperature {value.temperature:g}; the cache is to "
            f"keep {coding.k} at {coding.temperature:g}: set cache.k and method.temperature to the teacher's"
        )
    return value


def lost(topk: TopK, stored: TopK) -> Tensor:
    """KL(live || stored) over the kept tokens and the tail, in nats [n]; ``stored`` has the ids in ascending order."""
    live = torch.cat([topk.logprobs.gather(-1, topk.indices.argsort(-1)), topk.log_tail[..., None]], -1)
    kept = torch.cat([stored.logprobs, stored.log_tail[..., None]], -1)
    return torch.where(live > -torch.inf, live.exp() * (live - kept), torch.zeros_like(live)).sum(-1).clamp(min=0)


# ---------------------------------------------------------------------------------------------------------------------
# Rows and their names


def learnt(batch: Mapping[str, Any]) -> Tensor:
    """Which positions predict a token that is learnt, bool [B, T]; the last never does."""
    labels = batch.get("labels")
    mask = torch.ones_like(batch["input_ids"], dtype=torch.bool) if labels is None else labels != IGNORE
    return torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def row_keys(batch: Mapping[str, Any]) -> np.ndarray:
    """A name for each row, int64 [B, 2]: a hash of its tokens and of which of them are learnt, without padding.

    Raises:
        UserError: there are no tokens.
    """
    if "input_ids" not in batch:
        raise UserError("cache modes packed and sampled store distributions of next tokens; this data has no input_ids")
    tokens = batch["input_ids"].cpu().to(torch.int32).numpy()
    marks = learnt(batch).cpu().numpy()
    given = batch.get("attention_mask")
    real = np.ones_like(marks) if given is None else given.cpu().numpy().astype(bool)
    rows = zip(tokens, marks, real, strict=True)
    digests = [_digest(row[here].tobytes(), mark[here].tobytes()) for row, mark, here in rows]
    return np.frombuffer(b"".join(digests), "<i8").reshape(-1, 2)


def _digest(tokens: bytes, marks: bytes) -> bytes:
    return hashlib.blake2b(tokens, digest_size=16, key=hashlib.blake2b(marks, digest_size=32).digest()).digest()


# ---------------------------------------------------------------------------------------------------------------------
# On disk


class TokenShard(Frozen):
    """A finished shard: its file, what is in it, and sums of the facts over its tokens."""

    bytes: int
    sha256: str
    rows: int
    tokens: int
    entries: int
    covered: float
    lost: float
    most_lost: float
    kept: float

    def columns(self, coding: Coding) -> list[tuple[Column, int]]:
        """The parts of the file, and how many items each has."""
        record, entry = coding.widths
        return [
            (Column(name="key", dtype="<i8", shape=(2,)), self.rows),
            (Column(name="sizes", dtype="<u4", shape=(2,)), self.rows),
            (Column(name="records", dtype="|u1", shape=(record,)), self.tokens),
            (Column(name="entries", dtype="|u1", shape=(entry,)), self.entries),
        ]


class TokenManifest(Frozen):
    """What a cache of tokens holds and for whom."""

    format: Literal["limbeck-teacher-cache"] = "limbeck-teacher-cache"
    version: int = 1
    keyed_by: Literal["tokens"] = "tokens"
    teacher: str
    tokenizer: str
    coding: Coding
    shards: tuple[TokenShard, ...] = ()

    @property
    def tokens(self) -> int:
        """How many are stored."""
        return sum(s.tokens for s in self.shards)


def load_token_manifest(directory: Path) -> TokenManifest:
    """Read and check the manifest.

    Raises:
        UserError: there is none, it is damaged, of another version, or of a cache that is keyed by sample.
    """
    return read_manifest(directory, TokenManifest)


class Parts(NamedTuple):
    """A shard's parts as memory-mapped arrays."""

    key: np.ndarray
    sizes: np.ndarray
    records: np.ndarray
    entries: np.ndarray


def places(shard: TokenShard, coding: Coding) -> tuple[list[int], int]:
    """Where each part of a shard starts, and the size of the file."""
    starts, end = [], 0
    for column, count in shard.columns(coding):
        starts.append(-(-end // ALIGN) * ALIGN)
        end = starts[-1] + column.row_bytes * count
    return starts, end


def map_parts(directory: Path, index: int, shard: TokenShard, coding: Coding) -> Parts:
    """A shard's parts."""
    raw = np.memmap(shard_path(directory, index), dtype=np.uint8, mode="r")
    starts, _ = places(shard, coding)
    return Parts(
        *(
            np.asarray(raw[start : start + count * c.row_bytes]).view(c.dtype).reshape(count, *c.shape)
            for (c, count), start in zip(shard.columns(coding), starts, strict=True)
        )
    )


def owned(manifest: TokenManifest, directory: Path, teacher: str, tokenizer: str, classes: int | None = None) -> None:
    """Refuse a cache of another teacher, tokenizer or vocabulary.

    Raises:
        UserError: says which differs, and how.
    """
    coding, where = manifest.coding, f"the teacher cache at {directory}"
    if manifest.teacher != teacher:
        raise UserError(
            f"{where} is stale: it was filled by teacher {manifest.teacher}, this one is {teacher} (other weights or "
            "architecture): fill a new one"
        )
    if manifest.tokenizer != tokenizer:
        raise UserError(
            f"{where} is foreign: its tokens are those of tokenizer {manifest.tokenizer}, the data's is {tokenizer}: "
            "fill a new one"
        )
    if classes is not None and coding.classes != classes:
        raise UserError(
            f"{where} is foreign: its distributions are over {coding.classes} tokens, here there are {classes}: "
            "fill a new one"
        )
