"""The format on disk, version 1.

``manifest.json`` says for whom the cache is (teacher hash, source fingerprint), what it holds (signals, views, count)
and lists the shards with their hashes. Row ``r = view_position * count + row_of_the_source`` is row
``r % rows_per_shard`` of shard ``r // rows_per_shard``. A shard ``shard-00000.bin`` is its columns one after the other,
each starting at a multiple of 64 bytes: first the sample ids (int64), then the signals' columns in the manifest's
order. Nothing in it is executable, and it is read without this library by ``np.memmap``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from limbeck.engine.cache.encoding import Column, Frozen, SignalInfo
from limbeck.errors import UserError

Kind = TypeVar("Kind", bound=Frozen)

VERSION = 1
MANIFEST = "manifest.json"
ALIGN = 64
ID = Column(name="id", dtype="<i8")
SHARD_BYTES = 64 << 20
"""Usual size of a shard: what is lost when filling is cut off."""
MAX_SHARDS = 128
"""Larger caches get larger shards: every shard is a mapping, and a mapping holds a file descriptor."""


class ShardInfo(Frozen):
    """A finished shard. ``covered`` holds, by top-k signal, the sum of covered masses and how many were summed."""

    bytes: int
    sha256: str
    covered: dict[str, tuple[float, int]] = Field(default_factory=dict)


class Chunk(NamedTuple):
    """Consecutive source rows of one view: ``row`` is where they lie in the cache."""

    row: int
    view: int
    start: int
    stop: int


class Manifest(Frozen):
    """What a cache holds and for whom. Hyper-parameters of the encodings are in ``signals``."""

    format: Literal["limbeck-teacher-cache"] = "limbeck-teacher-cache"
    version: int = VERSION
    teacher: str
    fingerprint: str
    signals: tuple[SignalInfo, ...]
    views: tuple[int, ...]
    count: int
    rows_per_shard: int
    shards: tuple[ShardInfo | None, ...]
    covered_mass: dict[str, float] = Field(default_factory=dict)
    complete: bool = False

    @property
    def rows(self) -> int:
        """Rows of all views together."""
        return self.count * len(self.views)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns of a shard, in order."""
        return columns_of(self.signals)

    def shard_rows(self, index: int) -> range:
        """The rows of a shard."""
        start = index * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def shard_bytes(self, index: int) -> int:
        """The size a shard must have."""
        return layout(self.columns, len(self.shard_rows(index)))[1]

    def chunks(self, index: int, size: int) -> Iterator[Chunk]:
        """The batches, of at most ``size`` rows and one view each, that fill a shard."""
        rows = self.shard_rows(index)
        row = rows.start
        while row < rows.stop:
            position, start = divmod(row, self.count)
            stop = min(start + size, self.count, start + rows.stop - row)
            yield Chunk(row, self.views[position], start, stop)
            row += stop - start

    def with_shard(self, index: int, shard: ShardInfo) -> Manifest:
        """The manifest once that shard is on disk; complete, with its covered mass, when it was the last."""
        shards = (*self.shards[:index], shard, *self.shards[index + 1 :])
        done = [s for s in shards if s is not None]
        complete = len(done) == len(shards)
        covered = {s.gives: _mean([d.covered[s.name] for d in done]) for s in self.signals if s.encoding == "topk"}
        return self.model_copy(
            update={"shards": shards, "complete": complete, "covered_mass": covered if complete else {}}
        )


def columns_of(signals: tuple[SignalInfo, ...]) -> tuple[Column, ...]:
    """The columns of a shard that holds these signals."""
    return (ID, *(column for signal in signals for column in signal.columns))


def layout(columns: tuple[Column, ...], rows: int) -> tuple[list[int], int]:
    """Where each column of a shard of that many rows starts, and the shard's size, in bytes."""
    offsets, end = [], 0
    for column in columns:
        start = -(-end // ALIGN) * ALIGN
        offsets.append(start)
        end = start + column.row_bytes * rows
    return offsets, end


def rows_per_shard(columns: tuple[Column, ...], rows: int) -> int:
    """How many rows go into one shard of a cache with ``rows`` rows."""
    usual = SHARD_BYTES // sum(c.row_bytes for c in columns)
    return min(rows, max(1, usual, -(-rows // MAX_SHARDS)))


def shard_path(directory: Path, index: int) -> Path:
    """The file of a shard."""
    return directory / f"shard-{index:05d}.bin"


def load_manifest(directory: Path) -> Manifest:
    """Read and check the manifest.

    Raises:
        UserError: there is none, it is damaged, or it is of another version.
    """
    manifest = read_manifest(directory, Manifest)
    _check_numbers(manifest, directory / MANIFEST)
    return manifest


def read_manifest(directory: Path, kind: type[Kind]) -> Kind:
    """Read a manifest of a kind.

    Raises:
        UserError: there is none, it is damaged, or it is of another version.
    """
    path = directory / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"there is no teacher cache at {directory} (no {MANIFEST})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete the cache and fill it again") from None
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != VERSION:
        raise UserError(f"{path} is of version {version}, this library reads version {VERSION}: fill the cache again")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged ({where}: {first['msg']}): delete the cache and fill it again") from None


def save_manifest(directory: Path, manifest: Frozen) -> None:
    """Replace the manifest in one step, so that a reader sees the old one or the new one."""
    write_atomically(directory / MANIFEST, manifest.model_dump_json(indent=1).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    if os.name == "nt":  # directories cannot be opened there; renames are durable without it
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_numbers(manifest: Manifest, path: Path) -> None:
    sound = manifest.rows > 0 and manifest.rows_per_shard > 0
    if not sound or len(manifest.shards) != -(-manifest.rows // manifest.rows_per_shard):
        raise UserError(f"{path} is damaged (counts do not add up): delete the cache and fill it again")


def _mean(parts: list[tuple[float, int]]) -> float:
    return sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1)
