"""Reading a cache: who it is for, whether its shards are whole, and rows by (id, view)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.data.base import Batch, Source
from limbeck.engine.cache.encoding import Column, decode, deviation
from limbeck.engine.cache.format import ID, Manifest, layout, load_manifest, shard_path, write_atomically
from limbeck.errors import UserError
from limbeck.models.forward import Signals

LOW_COVERAGE = 0.95
"""Below this mean covered mass a top-k cache is warned of."""
_VERIFIED = "verified.json"


class NotCachedError(UserError, LookupError):
    """A sample id or a view that the cache does not hold; the message names it."""


class _Index(NamedTuple):
    """Sorted ids of a view, and which of its rows each one is."""

    known: np.ndarray
    positions: np.ndarray

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of these ids, and which of them exist."""
        last = len(self.known) - 1
        if int(self.known[last]) - int(self.known[0]) == last:  # consecutive ids, the usual case, need no search
            at = np.clip(ids - self.known[0], 0, last)
        else:
            at = np.minimum(np.searchsorted(self.known, ids), last)
        return self.positions[at], self.known[at] == ids


class TeacherCache:
    """A teacher's stored outputs. Make one with :meth:`open` or :func:`~limbeck.engine.cache.fill`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._shards = [_map(directory, manifest, index) for index in range(len(manifest.shards))]
        self._indices: dict[int, _Index] = {}

    @classmethod
    def open(
        cls, directory: Path | str, *, teacher_hash: str, fingerprint: str, verify: bool | None = None
    ) -> TeacherCache:
        """Open a complete cache for exactly this teacher and this data.

        Args:
            directory: of the cache.
            teacher_hash: content hash of the teacher that it is to stand for.
            fingerprint: of the data source, its preprocessing included.
            verify: True re-hashes every shard, False looks at sizes alone. By default shards are hashed on first
                opening and again whenever their file has changed since.

        Raises:
            UserError: missing, incomplete, damaged (the shard is named), or made for another teacher or other data.
        """
        directory = Path(directory)
        manifest = load_manifest(directory)
        check_owner(manifest, directory, teacher_hash, fingerprint)
        missing = sum(shard is None for shard in manifest.shards)
        if missing or not manifest.complete:
            raise UserError(
                f"the teacher cache at {directory} lacks {missing} of {len(manifest.shards)} shards: fill it on"
            )
        sizes = [manifest.shard_bytes(index) for index in range(len(manifest.shards))]
        check_shards(directory, sizes, [s.sha256 for s in manifest.shards if s is not None], verify)
        return cls(directory, manifest)

    def __len__(self) -> int:
        """Number of samples (in each view)."""
        return self.manifest.count

    @property
    def gives(self) -> set[str]:
        """Names that :meth:`lookup` serves: ``logits``, or ``logits_topk`` where only the top k are kept."""
        return {signal.gives for signal in self.manifest.signals}

    @property
    def views(self) -> tuple[int, ...]:
        """The views it holds."""
        return self.manifest.views

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.manifest.shards if shard is not None)

    @property
    def covered_mass(self) -> dict[str, float]:
        """Mean probability mass that the kept classes cover, by top-k signal."""
        return self.manifest.covered_mass

    @property
    def warnings(self) -> list[str]:
        """What a user should know before trusting it: a line for each signal whose top k cover little."""
        return [
            f"the cached top {s.k} of '{s.name}' cover {self.covered_mass[s.gives]:.3f} of the teacher's mass on "
            f"average: raise k (of {s.shape[-1]} classes)"
            for s in self.manifest.signals
            if self.covered_mass.get(s.gives, 1.0) < LOW_COVERAGE
        ]

    def lookup(self, ids: Tensor, view: int = 0) -> Signals:
        """The teacher's signals for samples ``ids`` (int64 [B]) of one view, on the device of ``ids``.

        Floats come back as float32, integers as they were; a truncated signal ``logits`` comes back as
        ``logits_topk``, a :class:`~limbeck.truncated.TopK`.

        Raises:
            NotCachedError: an id or the view is not in the cache.
        """
        rows = self._rows(ids.detach().cpu().numpy(), int(view))
        columns = self._gather(rows)
        return Signals({s.gives: decode(columns, s).to(ids.device) for s in self.manifest.signals})

    def serve(self, batch: Mapping[str, Any]) -> Signals:
        """The teacher's signals for a batch, by its ids and view."""
        return self.lookup(batch["id"], int(batch["view"]))

    def verify(
        self,
        compute: Callable[[Batch], Mapping[str, Any]],
        source: Source,
        n: int = 8,
        *,
        seed: int = 0,
        tolerance: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Replay ``n`` random samples against the live teacher.

        Args:
            compute: the live teacher.
            source: the data that the run will use.
            n: samples replayed, over random views.
            seed: of the choice of samples.
            tolerance: allowed deviation; the default follows from the encoding. Tensors are compared relative to the
                row's largest magnitude, truncated distributions by total variation.
            device: where batches are moved before the teacher is called; by default they stay where the data is.

        Raises:
            UserError: a stored row is not what the teacher gives now; names the signal, sample, view and difference.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(source), generator=generator)[:n]
        views = torch.randint(len(self.views), (len(rows),), generator=generator)
        for position in views.unique().tolist():
            view = self.views[position]
            batch = source.batch(rows[views == position], view)
            with torch.no_grad():
                live = compute(moved(batch, device))
            self._compare(batch["id"], view, live, tolerance)

    def _compare(self, ids: Tensor, view: int, live: Mapping[str, Any], tolerance: float | None) -> None:
        stored = self.lookup(ids, view)
        for signal in self.manifest.signals:
            value = live[signal.name].detach().to(ids.device)
            if tuple(value.shape[1:]) != signal.shape:
                raise UserError(
                    f"{self._differs(signal.name)}: shape {tuple(value.shape[1:])}, stored is {signal.shape}"
                )
            error, allowed = deviation(stored[signal.gives], value, signal)
            allowed = allowed if tolerance is None else tolerance
            worst = int(error.argmax())
            if not error[worst] <= allowed:
                raise UserError(
                    f"{self._differs(signal.name)}: sample {int(ids[worst])} of view {view} is off by "
                    f"{error[worst]:.2g}, allowed is {allowed:g}: fill a new cache, and see that data and teacher are "
                    "deterministic"
                )

    def _differs(self, signal: str) -> str:
        return f"the teacher cache at {self.directory} does not hold what the teacher gives now for '{signal}'"

    def check_ids(self) -> None:
        """Make sure that every view has distinct ids (reads the ids of all shards).

        Raises:
            UserError: an id is there twice; it is named.
        """
        for view in self.views:
            self._index(view)

    # -----------------------------------------------------------------------------------------------------------------
    # Rows

    def _rows(self, ids: np.ndarray, view: int) -> np.ndarray:
        """Rows of the cache that hold these samples of a view."""
        index = self._index(view)
        positions, found = index.find(ids)
        if not found.all():
            lost = ids[~found]
            some = ", ".join(str(i) for i in lost[:5]) + (", ..." if len(lost) > 5 else "")
            raise NotCachedError(f"the teacher cache at {self.directory} holds no sample with id {some} (view {view})")
        return self.views.index(view) * len(self) + positions

    def _index(self, view: int) -> _Index:
        """Where the ids of a view lie in it; views with the same ids in the same order share one index."""
        if view in self._indices:
            return self._indices[view]
        if view not in self.views:
            raise NotCachedError(
                f"the teacher cache at {self.directory} holds no view {view}; it holds {_span(self.views)}"
            )
        start = self.views.index(view) * len(self)
        ids = self._gather(np.arange(start, start + len(self)), (ID,))["id"]
        index = next((i for i in self._indices.values() if np.array_equal(ids[i.positions], i.known)), None)
        if index is None:
            positions = np.argsort(ids, kind="stable")
            index = _Index(ids[positions], positions)
            if (twice := index.known[1:][index.known[1:] == index.known[:-1]]).size:
                raise UserError(
                    f"the teacher cache at {self.directory} has id {twice[0]} twice in view {view}: ids must differ"
                )
        self._indices[view] = index
        return index

    def _gather(self, rows: np.ndarray, columns: Iterable[Column] | None = None) -> dict[str, np.ndarray]:
        """Copies of the given rows, in their order, across shards."""
        wanted = tuple(self.manifest.columns[1:] if columns is None else columns)
        shard, local = np.divmod(rows, self.manifest.rows_per_shard)
        if len(self._shards) == 1:
            return {c.name: self._shards[0][c.name].take(local, axis=0) for c in wanted}
        out = {c.name: np.empty((len(rows), *c.shape), c.dtype) for c in wanted}
        for index in np.flatnonzero(np.bincount(shard)):
            here = np.flatnonzero(shard == index)
            for c in wanted:
                out[c.name][here] = self._shards[index][c.name].take(local[here], axis=0)
        return out


def moved(batch: Batch, device: torch.device | str | None) -> Batch:
    """The batch with its tensors on a device (None: as it is)."""
    return batch if device is None else {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def check_owner(manifest: Manifest, directory: Path, teacher_hash: str, fingerprint: str) -> None:
    """Refuse a cache made for another teacher (stale) or from other data (foreign).

    Raises:
        UserError: says which of the two differs, and how.
    """
    if manifest.teacher != teacher_hash:
        raise UserError(
            f"the teacher cache at {directory} is stale: it was filled by teacher {manifest.teacher}, this one is "
            f"{teacher_hash} (other weights or architecture): fill a new one"
        )
    if manifest.fingerprint != fingerprint:
        raise UserError(
            f"the teacher cache at {directory} is foreign: it was filled from data {manifest.fingerprint}, "
            f"this is {fingerprint} (other samples, preprocessing or augmentation): fill a new one"
        )


def remember_verified(directory: Path, hashes: Mapping[int, str]) -> None:
    """Note that these shards, as their files are now, have these hashes: they need not be read again to know it."""
    noted = _verified(directory)
    noted |= {str(index): [sha256, *_stamp(shard_path(directory, index))] for index, sha256 in hashes.items()}
    try:
        write_atomically(directory / _VERIFIED, json.dumps(noted).encode())
    except OSError:  # a cache on a read-only disk is served all the same, and hashed each time
        return


def check_shards(directory: Path, sizes: Sequence[int], hashes: Sequence[str], verify: bool | None) -> None:
    """Refuse shards that are missing, cut off or altered; see :meth:`TeacherCache.open` for ``verify``.

    Raises:
        UserError: names the file.
    """
    noted = {} if verify else _verified(directory)
    fresh = {}
    for index, (size, sha256) in enumerate(zip(sizes, hashes, strict=True)):
        path = shard_path(directory, index)
        if not path.exists() or path.stat().st_size != size:
            has = f"has {path.stat().st_size} bytes, not {size}" if path.exists() else "is missing"
            raise UserError(f"{path} {has}: delete it and fill the cache on")
        if verify is False or noted.get(str(index)) == [sha256, *_stamp(path)]:
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(f"{path} was altered (its hash is not the manifest's): delete it and fill the cache on")
        fresh[index] = sha256
    if fresh:
        remember_verified(directory, fresh)


def _verified(directory: Path) -> dict[str, list[Any]]:
    try:
        noted = json.loads((directory / _VERIFIED).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _stamp(path: Path) -> list[int]:
    """What changes when a file is written or replaced: inode, change and modification time, size."""
    stat = path.stat()
    return [stat.st_ino, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size]


def _map(directory: Path, manifest: Manifest, index: int) -> dict[str, np.ndarray]:
    """The columns of a shard as memory-mapped arrays."""
    rows = len(manifest.shard_rows(index))
    raw = np.memmap(shard_path(directory, index), dtype=np.uint8, mode="r")
    offsets, _ = layout(manifest.columns, rows)
    return {
        c.name: np.asarray(raw[start : start + rows * c.row_bytes]).view(c.dtype).reshape(rows, *c.shape)
        for c, start in zip(manifest.columns, offsets, strict=True)
    }


def _span(views: tuple[int, ...]) -> str:
    if len(views) > 2 and views == tuple(range(views[0], views[-1] + 1)):
        return f"{views[0]} to {views[-1]}"
    return ", ".join(map(str, views))
