"""Reading a cache of tokens: rows by their content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.cache.encoding import refuse_non_finite
from limbeck.engine.cache.reader import LOW_COVERAGE, NotCachedError, check_shards, moved
from limbeck.engine.cache.spec import format_bytes
from limbeck.engine.cache.tokens import (
    TokenManifest,
    learnt,
    load_token_manifest,
    lost,
    map_parts,
    owned,
    places,
    row_keys,
)
from limbeck.errors import UserError
from limbeck.models.forward import Signals
from limbeck.truncated import Sampled, TopK

ALIKE = 5e-3
"""Total variation that rounding in the teacher's own computation may cause."""
SAME_DRAWS = 0.02
"""Share of a row's draws that such rounding may change."""


class TokenCache:
    """A teacher's stored distributions of next tokens. Make one with :meth:`open` or by filling it."""

    def __init__(self, directory: Path, manifest: TokenManifest) -> None:
        self.directory, self.manifest, self.coding = directory, manifest, manifest.coding
        self._shards = [map_parts(directory, i, s, self.coding) for i, s in enumerate(manifest.shards)]
        keys = np.concatenate([s.key for s in self._shards] or [np.empty((0, 2), "<i8")])
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._known = keys[self._order]
        self._first = np.cumsum([0, *(s.rows for s in manifest.shards)])
        self._ends = [np.cumsum(s.sizes.astype(np.int64), axis=0) for s in self._shards]

    @classmethod
    def open(
        cls, directory: Path | str, *, teacher_hash: str, tokenizer: str | None, verify: bool | None = None
    ) -> TokenCache:
        """Open a cache for exactly this teacher and tokenizer.

        Args:
            directory: of the cache.
            teacher_hash: content hash of the teacher that it is to stand for.
            tokenizer: hash of the data's tokenizer, None where it says none.
            verify: as of :meth:`TeacherCache.open`.

        Raises:
            UserError: missing, damaged (the shard is named), or made for another teacher or tokenizer.
        """
        directory = Path(directory)
        manifest = load_token_manifest(directory)
        owned(manifest, directory, teacher_hash, tokenizer or "")
        sizes = [places(s, manifest.coding)[1] for s in manifest.shards]
        check_shards(directory, sizes, [s.sha256 for s in manifest.shards], verify)
        return cls(directory, manifest)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._known)

    @property
    def gives(self) -> set[str]:
        """What :meth:`serve` gives: ``logits_topk`` or ``logits_sampled``."""
        return {self.coding.gives}

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(s.bytes for s in self.manifest.shards)

    @property
    def bytes_per_token(self) -> float:
        """Of the shards, with the rows' names and sizes."""
        return self.nbytes / max(self.manifest.tokens, 1)

    def mean(self, fact: str) -> float:
        """Mean over all tokens of ``covered`` (mass of what is kept), ``lost`` (nats) or ``kept`` (ids)."""
        return float(sum(getattr(s, fact) for s in self.manifest.shards)) / max(self.manifest.tokens, 1)

    @property
    def warnings(self) -> list[str]:
        """What a user should know before trusting it."""
        covered = self.mean("covered")
        if self.coding.kind == "sampled" or covered >= LOW_COVERAGE or not self.manifest.tokens:
            return []
        return [
            f"the cached top {self.coding.k} tokens cover {covered:.3f} of the teacher's mass on average: raise k (of "
            f"{self.coding.classes} tokens)"
        ]

    def says(self) -> str:
        """Size and error in a line: bytes a token, and what storing lost."""
        facts = f"{self.manifest.tokens} tokens of {len(self)} rows, {format_bytes(self.nbytes)}"
        facts += f", {self.bytes_per_token:.1f} bytes a token"
        if self.coding.kind == "sampled":
            exact = "unbiased" if self.coding.drawing.counted else "unbiased to 1 part in 2048"
            return f"{facts}; {self.coding.draws} draws, {self.mean('kept'):.1f} distinct on average, {exact}"
        worst = max((s.most_lost for s in self.manifest.shards), default=0.0)
        return (
            f"{facts}; top {self.coding.k} cover {self.mean('covered'):.4f}, rounding costs {self.mean('lost'):.2g} "
            f"nats a token (at most {worst:.2g})"
        )

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Which of the row names int64 [B, 2] are there, bool [B]."""
        return self._find(keys) >= 0

    def serve(self, batch: Mapping[str, Any]) -> Signals:
        """The teacher's distributions for a batch of rows, found by their tokens: [B, T, ...].

        Positions whose next token is not learnt are not stored; they hold an even distribution.

        Raises:
            NotCachedError: a row is not in the cache.
        """
        here = learnt(batch)
        value = self._decoded(row_keys(batch), here.sum(1).cpu().numpy(), here.device)
        return Signals({self.coding.gives: _spread(value, here)})

    def verify(
        self,
        compute: Callable[[Any], Mapping[str, Any]],
        source: Source,
        n: int = 8,
        *,
        seed: int = 0,
        view: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """Replay ``n`` random rows against the live teacher.

        Packed distributions may differ by their own rounding and :data:`ALIKE`, in total variation over the kept tokens
        and the tail; draws, made again, in a share of :data:`SAME_DRAWS` of a row's.

        Raises:
            UserError: a stored row is not what the teacher gives now; names the sample and the difference.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(source), generator=generator)[:n].sort().values
        for row in rows.split(1):
            batch = moved(source.batch(row, view), device)
            keys, here = row_keys(batch), learnt(batch)
            if not here.any():
                continue
            with torch.no_grad():
                live = live_value(compute(batch), here, self.coding.classes)
            stored = self._decoded(keys, here.sum(1).cpu().numpy(), here.device)
            off, allowed = self._apart(stored, live, torch.as_tensor(keys[:, 0].copy()).to(here.device), here)
            if not off <= allowed:
                raise UserError(
                    f"the teacher cache at {self.directory} does not hold what the teacher gives now: sample "
                    f"{int(batch['id'][0])} is off by {off:.2g}, allowed is {allowed:.2g}: fill a new cache, and see "
                    "that data and teacher are deterministic"
                )

    # -----------------------------------------------------------------------------------------------------------------

    def _apart(self, stored: TopK | Sampled, live: Tensor | TopK, key: Tensor, here: Tensor) -> tuple[float, float]:
        """How far a row is from the live teacher, and how far it may be."""
        positions = here.nonzero()[:, 1]
        records, entries, _ = self.coding.encode(live, key.expand(len(positions)), positions)
        again = self.coding.decode(records, entries)
        if isinstance(stored, Sampled):
            assert isinstance(again, Sampled)
            return float(_unlike_draws(stored, again).mean()), SAME_DRAWS
        assert isinstance(again, TopK)
        if isinstance(live, Tensor):
            own, there = _variation(again, live), _variation(stored, live)
        else:
            own, there = lost(live, again).sqrt(), _lost_or_all(live, stored).sqrt()
        worst = int((there - own).argmax())
        return float(there[worst]), float(own[worst]) + ALIKE

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers of these names, -1 where there is none."""
        if not len(self._known):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self._known[:, 0], keys[:, 0]), len(self._known) - 1)
        return np.where((self._known[at] == keys).all(1), self._order[at], -1)

    def _decoded(self, keys: np.ndarray, sizes: np.ndarray, device: torch.device) -> TopK | Sampled:
        """The distributions of all learnt tokens of these rows, in order."""
        rows = self._find(keys)
        if (rows < 0).any():
            raise NotCachedError(
                f"the teacher cache at {self.directory} holds {len(self)} rows, and {(rows < 0).sum()} of these "
                f"{len(rows)} are not among them (the first is number {int((rows < 0).argmax())} of the batch): its "
                "tokens, or which of them are learnt, are others than when it was filled"
            )
        records, entries = self._gather(rows)
        if len(records) != sizes.sum():
            raise UserError(f"the teacher cache at {self.directory} is damaged: rows have another number of tokens")
        return self.coding.decode(torch.from_numpy(records).to(device), torch.from_numpy(entries).to(device))

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Records and entries of rows, in their order, across shards."""
        shard = np.searchsorted(self._first, rows, side="right") - 1
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        for index, row in zip(shard, rows - self._first[shard], strict=True):
            parts, ends = self._shards[index], self._ends[index]
            start = ends[row - 1] if row else np.zeros(2, np.int64)
            pieces.append((parts.records[start[0] : ends[row, 0]], parts.entries[start[1] : ends[row, 1]]))
        return np.concatenate([a for a, _ in pieces]), np.concatenate([b for _, b in pieces])


def live_value(signals: Mapping[str, Any], here: Tensor, classes: int) -> Tensor | TopK:
    """What a teacher tells of the learnt tokens, [n, ...]: logits, or its likeliest tokens.

    Raises:
        UserError: neither is there, it has other shapes than the text, or is not finite.
    """
    if "logits_topk" in signals:
        topk: TopK = signals["logits_topk"]
        return TopK(topk.indices[here], topk.logprobs[here], topk.log_tail[here], topk.temperature, topk.classes)
    logits = signals.get("logits")
    if not isinstance(logits, Tensor) or logits.shape[:2] != here.shape:
        got = list(logits.shape) if isinstance(logits, Tensor) else ", ".join(sorted(signals)) or "nothing"
        raise UserError(
            f"cache modes packed and sampled need logits [rows, tokens, vocabulary]; the teacher gives {got}"
        )
    # What lies beyond the tokenizer's entries is padding, and no text has it.
    kept = logits[..., :classes][here]
    refuse_non_finite(kept, "logits")
    return kept


def _spread(value: TopK | Sampled, here: Tensor) -> TopK | Sampled:
    """Distributions of the tokens at ``here`` [B, T] in their places, an even one in all others."""
    width, classes = value.indices.shape[-1], value.classes or value.indices.shape[-1]
    ids = torch.arange(width, device=here.device).clamp(max=classes - 1).expand(*here.shape, width).clone()
    ids[here] = value.indices
    if isinstance(value, Sampled):
        weights = torch.full((*here.shape, width), 1 / max(width, 1), device=here.device)
        weights[here] = value.weights
        return Sampled(ids, weights, value.temperature, value.classes)
    logprobs = torch.full((*here.shape, width), -float(np.log(classes)), device=here.device)
    logprobs[here] = value.logprobs
    rest = float(np.log1p(-width / classes)) if width < classes else -torch.inf
    tail = torch.full(here.shape, rest, device=here.device)
    tail[here] = value.log_tail
    return TopK(ids, logprobs, tail, value.temperature, value.classes)


def _variation(stored: TopK, live: Tensor) -> Tensor:
    """Total variation over the stored tokens and the tail, [n], from live logits [n, V]."""
    here = torch.log_softmax(live.float() / stored.temperature, -1).gather(-1, stored.indices).exp()
    there = stored.logprobs.exp()
    return ((here - there).abs().sum(-1) + (here.sum(-1) - there.sum(-1)).abs()) / 2


def _lost_or_all(live: TopK, stored: TopK) -> Tensor:
    """:func:`lost` where the stored ids are the live ones, infinite elsewhere."""
    same = (live.indices.sort(-1).values == stored.indices).all(-1)
    return torch.where(same, lost(live, stored), torch.full_like(live.log_tail, torch.inf))


def _unlike_draws(one: Sampled, other: Sampled) -> Tensor:
    """Half the sum of differences of two rows of draws, over their weight: [n]."""
    classes = one.classes or 1
    n = len(one.indices)
    place = torch.arange(n, device=one.indices.device)[:, None] * classes
    ids = torch.cat([(one.indices + place).flatten(), (other.indices + place).flatten()])
    weights = torch.cat([one.weights.flatten(), -other.weights.flatten()])
    distinct, at = ids.unique(return_inverse=True)
    apart = torch.zeros(len(distinct), device=weights.device).index_add_(0, at, weights).abs()
    total = torch.zeros(n, device=weights.device).index_add_(0, distinct // classes, apart) / 2
    return total / one.weights.sum(-1).clamp(min=1e-12)
