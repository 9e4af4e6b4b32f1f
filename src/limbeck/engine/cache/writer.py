"""Filling a cache: shard by shard, each written under a temporary name, synced, and renamed before it is listed.

Whatever kills the process, the directory holds whole shards and a manifest that lists them; the next :func:`fill` goes
on at the first one missing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from limbeck.data.base import Batch, Source
from limbeck.engine.cache.budget import check_budget
from limbeck.engine.cache.encoding import SignalInfo, decode, describe, encode
from limbeck.engine.cache.format import (
    MANIFEST,
    Chunk,
    Manifest,
    ShardInfo,
    columns_of,
    layout,
    load_manifest,
    rows_per_shard,
    save_manifest,
    shard_path,
    sync_directory,
)
from limbeck.engine.cache.reader import TeacherCache, check_owner, moved, remember_verified
from limbeck.engine.cache.spec import CacheSpec, format_bytes
from limbeck.errors import UserError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Computes(Protocol):
    """A teacher: gives its signals for a batch, and is named by the hash of its content."""

    @property
    def hash(self) -> str:
        """Content hash: other weights, another hash."""
        ...

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Its signals for a batch, by name."""
        ...


def fill(
    directory: Path | str,
    teacher: Computes,
    source: Source,
    spec: CacheSpec,
    signals: Collection[str],
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str | None = None,
) -> TeacherCache:
    """Run the teacher over every sample and view, store the named signals, and open the result.

    A directory that already holds this cache is completed, or just opened. Nothing is written before the size is known
    to fit both the budget and the disk.

    Args:
        directory: of the cache; made if missing.
        teacher: called on batches of ``source``.
        source: the samples; the ids that ``batch`` gives must be distinct within a view.
        spec: encoding, views and budget.
        signals: names of the teacher outputs to store, all tensors with a leading batch dimension.
        batch_size: samples per call of the teacher.
        progress: called with (rows done, rows in all) after each batch.
        device: where batches are moved before the teacher is called; by default they stay where the data is.

    Raises:
        UserError: over the budget; disk full; a signal is missing, changes its shape or is not finite; the directory
            holds another cache or is being filled by another process.
    """
    directory = Path(directory)
    compute = _Teacher(teacher, tuple(sorted(signals)), device)
    found = _existing(directory, teacher.hash, source.fingerprint)
    wanted = _plan(compute, source, spec, found)
    size = check_budget(spec, wanted.signals, wanted.count)
    if found is None:
        check_disk(directory, size)
    with disk_errors(directory), exclusive(directory):
        manifest = _resume(directory, wanted)
        filler = _Filler(directory, compute, source, batch_size, progress)
        for index in [i for i, shard in enumerate(manifest.shards) if shard is None]:
            shard = filler.write(manifest, index)
            manifest = manifest.with_shard(index, shard)
            save_manifest(directory, manifest)
            remember_verified(directory, {index: shard.sha256})
    cache = TeacherCache.open(directory, teacher_hash=teacher.hash, fingerprint=source.fingerprint)
    cache.check_ids()
    for warning in cache.warnings:
        warnings.warn(warning, stacklevel=2)
    return cache


class _Teacher:
    """The teacher's named signals for a batch, as CPU tensors, checked."""

    def __init__(self, teacher: Computes, signals: tuple[str, ...], device: torch.device | str | None) -> None:
        self.teacher, self.signals, self.device = teacher, signals, device

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        given = self.teacher(moved(batch, self.device))
        return {name: self._checked(name, given, len(batch["id"])) for name in self.signals}

    def _checked(self, name: str, given: dict[str, Any], size: int) -> Tensor:
        if name not in given:
            raise UserError(f"the teacher gives no signal '{name}' to cache; it gives {', '.join(sorted(given))}")
        value = given[name]
        if not isinstance(value, Tensor):
            raise UserError(f"signal '{name}' is a {type(value).__name__}; only tensors can be cached: name its parts")
        if value.shape[:1] != (size,):
            raise UserError(
                f"signal '{name}' has shape {tuple(value.shape)} for a batch of {size}; it must start with {size}"
            )
        return value.detach().cpu().contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# What is to be filled


def _plan(compute: _Teacher, source: Source, spec: CacheSpec, found: Manifest | None) -> Manifest:
    """The manifest of the whole cache without its shards; shapes come from it, or from a call on two samples."""
    count = len(source)
    if count == 0 or not compute.signals:
        raise UserError("there is nothing to cache: the data is empty" if count == 0 else "no signal is named to cache")
    known = {s.name: (s.shape, s.dtype) for s in found.signals} if found else {}
    if set(known) != set(compute.signals):
        view = spec.view_numbers[0]
        probe = compute(source.batch(torch.arange(min(2, count)), view))
        known = {n: (tuple(v.shape[1:]), _dtype(v)) for n, v in probe.items()}
    signals = tuple(describe(name, *known[name], spec) for name in compute.signals)
    columns, rows = columns_of(signals), count * len(spec.view_numbers)
    per_shard = rows_per_shard(columns, rows)
    return Manifest(
        teacher=compute.teacher.hash,
        fingerprint=source.fingerprint,
        signals=signals,
        views=spec.view_numbers,
        count=count,
        rows_per_shard=per_shard,
        shards=(None,) * -(-rows // per_shard),
    )


def _existing(directory: Path, teacher_hash: str, fingerprint: str) -> Manifest | None:
    """The manifest of this teacher's cache in the directory, if there is one."""
    if not (directory / MANIFEST).exists():
        return None
    found = load_manifest(directory)
    check_owner(found, directory, teacher_hash, fingerprint)
    return found


def _resume(directory: Path, wanted: Manifest) -> Manifest:
    """What is in the directory, if it is what is wanted, less the shards whose files are gone; else a fresh start."""
    for left_over in directory.glob("*.tmp"):
        left_over.unlink()
    found = _existing(directory, wanted.teacher, wanted.fingerprint)
    if found is None:
        save_manifest(directory, wanted)
        return wanted
    for name in ("signals", "views", "count"):
        if getattr(found, name) != getattr(wanted, name):
            here, there = _spelled(getattr(wanted, name)), _spelled(getattr(found, name))
            raise UserError(
                f"the teacher cache at {directory} has {name} {there}, wanted is {here}: use another directory"
            )
    whole = [_size(shard_path(directory, i)) == found.shard_bytes(i) for i in range(len(found.shards))]
    kept = tuple(shard if ok else None for shard, ok in zip(found.shards, whole, strict=True))
    return found.model_copy(update={"shards": kept, "complete": None not in kept})


def _spelled(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], SignalInfo):
        return ", ".join(f"{s.name}{list(s.shape)} as {s.encoding}{f' k={s.k}' if s.k else ''}" for s in value)
    return str(value)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@dataclass
class _Filler:
    """Writes shards from the teacher's answers."""

    directory: Path
    compute: _Teacher
    source: Source
    batch_size: int
    progress: Callable[[int, int], None] | None

    def write(self, manifest: Manifest, index: int) -> ShardInfo:
        """Compute a shard and put it in place, whole or not at all."""
        path = shard_path(self.directory, index)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("w+b") as file:
                covered = self._fill(file, manifest, index)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            temporary.replace(path)
            sync_directory(self.directory)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return ShardInfo(bytes=manifest.shard_bytes(index), sha256=digest, covered=covered)

    def _fill(self, file: BinaryIO, manifest: Manifest, index: int) -> dict[str, tuple[float, int]]:
        """Write all rows of a shard; returns the mass that truncated signals cover, as sum and count."""
        rows, columns = manifest.shard_rows(index), manifest.columns
        offsets, size = layout(columns, len(rows))
        _reserve(file, size)
        covered: dict[str, tuple[float, int]] = {}
        for chunk in manifest.chunks(index, self.batch_size):
            batch = self.source.batch(torch.arange(chunk.start, chunk.stop), chunk.view)
            values = {"id": _ids(batch, chunk)} | _encoded(self.compute(batch), manifest.signals)
            _add_covered(covered, values, manifest.signals, batch.get("attention_mask"))
            for column, offset in zip(columns, offsets, strict=True):
                file.seek(offset + (chunk.row - rows.start) * column.row_bytes)
                file.write(np.ascontiguousarray(values[column.name], dtype=column.dtype).data)
            if self.progress is not None:
                self.progress(chunk.row + chunk.stop - chunk.start, manifest.rows)
        return covered


def _encoded(values: dict[str, Tensor], signals: tuple[SignalInfo, ...]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for signal in signals:
        value = values[signal.name]
        shape, dtype = tuple(value.shape[1:]), _dtype(value)
        if (shape, dtype) != (signal.shape, signal.dtype):
            raise UserError(
                f"signal '{signal.name}' is {dtype} {list(shape)} for some samples and {signal.dtype} "
                f"{list(signal.shape)} for others: a cached signal has one shape (pad it)"
            )
        columns |= encode(value, signal)
    return columns


def _add_covered(
    covered: dict[str, tuple[float, int]],
    columns: dict[str, np.ndarray],
    signals: tuple[SignalInfo, ...],
    mask: Tensor | None,
) -> None:
    """Count the mass of truncated signals, of a token batch only where it is not padding."""
    for signal in signals:
        if signal.encoding == "topk":
            mass = decode(columns, signal).covered.double()
            if mask is not None and mask.shape == mass.shape:
                mass = mass[mask.bool().cpu()]
            total, count = covered.get(signal.name, (0.0, 0))
            covered[signal.name] = (total + mass.sum().item(), count + mass.numel())


def _ids(batch: Batch, chunk: Chunk) -> np.ndarray:
    ids, size = batch["id"].cpu(), chunk.stop - chunk.start
    if ids.shape != (size,) or ids.dtype != torch.int64:
        raise UserError(f"the data gives ids {list(ids.shape)} {_dtype(ids)} for {size} rows, not int64 [{size}]")
    if len(ids.unique()) != size:
        raise UserError(
            f"the data gives one id to several of the rows {chunk.start} to {chunk.stop - 1}: ids must differ"
        )
    return ids.numpy()


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the shard's bytes now, so that a full disk is noticed before the teacher has worked for it."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems without it say
                raise


# ---------------------------------------------------------------------------------------------------------------------
# Guards


def check_disk(directory: Path, size: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        UserError: says what is needed and what is free.
    """
    existing = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise UserError(f"the teacher cache needs {format_bytes(size)} and {existing} has {format_bytes(free)} free")


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Say of a disk that is full in a line what to do; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"no space left while filling the teacher cache at {directory}; the finished shards are kept: "
            "free space and run again"
        ) from error


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the directory against other fillers; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks on directories
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is filling the teacher cache at {directory}: wait for it") from None
    finally:
        os.close(descriptor)
