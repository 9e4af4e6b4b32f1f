"""What a network teacher makes once before a training, kept on disk: the next training finds it.

A pool is rows by number, made in chunks that are always cut alike. One that is kept has a folder named by a hash of all
that its rows depend on. In it are a safetensors shard for each chunk, named by its rows and by the first digits of its
SHA-256, and a ``manifest.json`` that tells people what they are. A chunk is written aside and renamed when it is whole,
so that making goes on after the last one, whatever ended it; more rows of the same pool are added to it. Trainings that
make the same pool at once do so each for itself, and write the same files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.engine.cache import format_bytes
from limbeck.engine.checkpoint import atomic, sha256, tensor_hash, write_json
from limbeck.engine.progress import Progress, say
from limbeck.errors import UserError
from limbeck.paths import cache_root

Rows = dict[str, Tensor]
"""Tensors by name, each with the rows first."""
Cut = tuple[int, int]
"""The rows of a chunk: the first, and the one after the last."""
T = TypeVar("T")

VERSION = 1
"""Of what is made and how it lies on disk: another version is another folder."""
MANIFEST = "manifest.json"
HELD = 256 << 20
"""Bytes up to which a pool on disk is read into one tensor, so that taking rows waits neither for disk nor device."""
PATIENCE = 5.0
"""Seconds of making before there is a word of progress."""
ABANDONED = 3600.0
"""Seconds after which a file aside that nobody wrote to is what a killed process left."""
_NAME = re.compile(r"(\d{8})-(\d{8})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class Keeping:
    """That a pool is to be kept, and as what.

    Attributes:
        facts: what its rows depend on, as JSON; ``what`` says in a word what they are.
        budget: bytes that it may take.
        about: further lines of its manifest, for people.
        kind: the folder of the cache that it lies in.
    """

    facts: Mapping[str, Any]
    budget: int
    about: Mapping[str, Any]
    kind: str = "pairs"


class Pool:
    """Rows by number; see :func:`make_pool`."""

    def __init__(self, parts: list[Rows], chunk: int, device: torch.device, *, mapped: bool) -> None:
        self.parts, self.chunk = parts, chunk
        self._held: Rows | None = None
        if not mapped or sum(v.nbytes for part in parts for v in part.values()) <= HELD:
            self._held = {k: torch.cat([part[k] for part in parts]).to(device) for k in parts[0]}
            self.parts = []

    def __getitem__(self, which: Tensor) -> Rows:
        """The rows with these numbers, int64 [B], on their device."""
        if self._held is not None:
            return {k: v[which] for k, v in self._held.items()}
        numbers = which.cpu()  # the rows are on the disk, and it is here that they are found
        part, place = numbers // self.chunk, numbers % self.chunk
        found = {k: v.new_empty(len(numbers), *v.shape[1:]) for k, v in self.parts[0].items()}
        for index in part.unique().tolist():
            here = part == index
            for k, v in self.parts[index].items():
                found[k][here] = v[place[here]]
        return {k: v.to(which.device) for k, v in found.items()}


@torch.no_grad()
def make_pool(
    make: Callable[[Tensor], Rows],
    count: int,
    *,
    chunk: int,
    device: torch.device,
    keeping: Keeping | None = None,
    quiet: bool = False,
) -> Pool:
    """The rows 0 to ``count - 1`` of a pool, found on disk or made now.

    All processes of a run call it together, and all of them make every row that is missing, because the teacher may be
    sharded; the first one alone writes, and says what is missing.

    Args:
        make: from row numbers, int64 [B] on ``device``, to the rows; it depends on them and on ``keeping.facts`` alone.
        count: how many rows.
        chunk: how many are made at once.
        device: where they are made, and held where they are few.
        keeping: that they are kept on disk; None holds them in memory.
        quiet: no progress.

    Raises:
        UserError: they would take more than the budget or than the disk has, or cannot be written or read there.
    """
    store = None if keeping is None else _store(make, count, chunk, device, keeping)
    cuts = [(first, min(first + chunk, count)) for first in range(0, count, chunk)]
    found = {} if store is None else store.open(cuts)
    done = sum(stop - first for first, stop in found)
    name = "pool" if keeping is None else str(keeping.facts["what"])
    bar = Progress(name, count, start=done, quiet=True)

    def speaks() -> bool:
        return not quiet and _is_first() and time.monotonic() - bar.began >= PATIENCE

    for cut in cuts:
        if cut not in found:
            made = make(torch.arange(*cut, device=device))
            found[cut] = made if store is None else store.add(cut, made)
            done += len(range(*cut))
            bar.quiet = not speaks()
            bar.update(done)
    if not bar.quiet:
        bar.close()
    return Pool([found[cut] for cut in cuts], chunk, device, mapped=store is not None)


# -- on disk -----------------------------------------------------------------------------------------------------------


class _Store:
    """The folder of a pool. All processes call its methods together; the first one alone looks and writes."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, about

    def open(self, cuts: list[Cut]) -> dict[Cut, Rows]:
        """The chunks that are there and whole, memory-mapped."""
        names = _by_first(lambda: self._whole(cuts))
        return {cut: self._read(name) for cut, name in names.items()}

    def add(self, cut: Cut, rows: Rows) -> Rows:
        """The chunk as it is now on disk."""
        return self._read(_by_first(lambda: self._write(cut, rows)))

    def _whole(self, cuts: list[Cut]) -> dict[Cut, str]:
        """Names of the intact shards, by chunk; what is damaged or left over is taken away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.part"):
            with suppress(FileNotFoundError):  # another training has just given it its name
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
        kept: dict[Cut, str] = {}
        for cut, digest, path in self._shards():
            if cut not in cuts or cut in kept:
                continue
            if sha256(path)[:16] == digest:
                kept[cut] = path.name
            else:
                say(f"{self.about['what']}: {path} is damaged, rows {cut[0]} to {cut[1] - 1} are made again")
                path.unlink(missing_ok=True)
        return kept

    def _write(self, cut: Cut, rows: Rows) -> str:
        """Put a chunk in place, whole or not at all, and bring the manifest up to date; returns the shard's name."""
        plain = {k: v.cpu().contiguous() for k, v in rows.items()}
        path = self.folder / f"{cut[0]:08d}-{cut[1]:08d}.safetensors"
        path = atomic(path, lambda aside: save_file(plain, aside), named_by_hash=True)
        shards = self._shards()
        # The last chunk of a smaller pool lies within a whole one of a larger pool.
        reached = {first: stop for (first, stop), _, _ in shards}
        made = sum(stop - first for first, stop in reached.items())
        names = [shard.name for _, _, shard in shards]
        write_json(self.folder / MANIFEST, {**self.about, "made": made, "shards": names})
        return path.name

    def _shards(self) -> list[tuple[Cut, str, Path]]:
        """Every shard in the folder, in order: its rows, the digits of its hash, and the file."""
        matches = [(_NAME.fullmatch(path.name), path) for path in sorted(self.folder.iterdir())]
        return [((int(m[1]), int(m[2])), m[3], path) for m, path in matches if m is not None]

    def _read(self, name: str) -> Rows:
        # Mapped, not read: pages come from the disk when rows are taken, and may go again.
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.folder / name} cannot be read ({error}): all processes need the folder of LIMBECK_HOME; "
                "method.keep: null does without"
            ) from error


def _store(make: Callable[[Tensor], Rows], count: int, chunk: int, device: torch.device, keeping: Keeping) -> _Store:
    """The store of a pool; two rows are made to know it by."""
    seen = make(torch.arange(2, device=device))
    size = count * sum(v[0].nbytes for v in seen.values())
    what = keeping.facts["what"]
    if size > keeping.budget:
        raise UserError(
            f"{count} {what} take {format_bytes(size)} on disk, over method.keep: {format_bytes(keeping.budget)}; "
            "raise it, make fewer, or hold them in memory with keep: null"
        )
    # The teacher's hash is of its weights and layers. Numbers that it computes with beside them (sigma_data, a noise
    # path), its precision and the device's own rounding show in what comes out, to the last bit.
    facts = {"version": VERSION, **keeping.facts, "chunk": chunk, "first_rows": tensor_hash(seen)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = _by_first(lambda: _roomy(cache_root() / keeping.kind / key, size, str(what)))
    rows = {k: {"shape": list(v.shape[1:]), "dtype": str(v.dtype).removeprefix("torch.")} for k, v in seen.items()}
    return _Store(folder, {**facts, **keeping.about, "rows": rows, "count": count})


def _roomy(folder: Path, size: int, what: str) -> Path:
    """The folder, if its disk has room for what it lacks."""
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if size - there > free:
        raise UserError(f"the {what} take {format_bytes(size - there)} and {existing} has {format_bytes(free)} free")
    return folder


# -- several processes -------------------------------------------------------------------------------------------------


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _is_first() -> bool:
    return not _several() or dist.get_rank() == 0


def _by_first(work: Callable[[], T]) -> T:
    """What the first process finds or does, known to all of them; its failure is raised in all."""
    told: list[Any] = [None, None]
    if _is_first():
        try:
            told[0] = work()
        except (OSError, UserError) as error:
            told[1] = f"{error}; method.keep: null holds them in memory instead"
    if _several():
        dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise UserError(told[1])
    found: T = told[0]
    return found
