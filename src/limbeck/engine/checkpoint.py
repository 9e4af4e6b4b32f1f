"""Checkpoints that survive: written aside, synced, renamed, named by their hash; safetensors and JSON, never pickle.

A checkpoint is one safetensors file whose header carries the JSON part of the state. Its name holds the step and the
first 16 hex digits of its SHA-256, so that a truncated or altered file is recognised without a second file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.errors import UserError

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.safetensors$")
_TENSOR = "__tensor__"


def save(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2, writes: bool = True) -> None:
    """Write the state of a step and drop all but the newest ``keep`` checkpoints.

    Args:
        folder: where checkpoints of this training live; made if missing.
        step: the global step that the state belongs to.
        state: nested maps and lists of tensors and JSON values; sharded tensors are gathered by all processes.
        keep: how many checkpoints stay.
        writes: whether this process is the one that writes.

    Raises:
        UserError: the file could not be written (full disk, no permission); older checkpoints are intact.
    """
    tensors, plain = pack(state)
    if not writes:
        return

    def write(path: Path) -> None:
        save_file(tensors, path, metadata={"state": json.dumps(plain)})

    folder.mkdir(parents=True, exist_ok=True)
    path = atomic(folder / f"step-{step:08d}.safetensors", write, named_by_hash=True)
    # What a killed process was writing is of no use to anyone; only one process writes here.
    for old in [*folder.glob(".step-*.part"), *checkpoints(folder)[keep:]]:
        if old != path:
            old.unlink(missing_ok=True)


def latest(folder: Path, *, warn: Callable[[str], None] = lambda text: None) -> tuple[int, dict[str, Any]] | None:
    """Newest intact checkpoint as (step, state); a damaged one is told through ``warn`` and the one before used."""
    for path in checkpoints(folder):
        try:
            return load(path)
        except UserError as error:
            warn(f"{error}; going back to the checkpoint before it")
    return None


def load(path: Path) -> tuple[int, dict[str, Any]]:
    """Read one checkpoint.

    Raises:
        UserError: it is not a checkpoint, or its content is not what its name says.
    """
    match = _NAME.search(path.name)
    if not match:
        raise UserError(f"{path} is not a checkpoint of this library (expected step-<number>-<hash>.safetensors)")
    if sha256(path)[:16] != match[2]:
        raise UserError(f"checkpoint {path} is damaged: its content does not match the hash in its name")
    try:
        with safe_open(path, "pt") as file:
            plain = json.loads(file.metadata()["state"])
            state = unpack(plain, {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    return int(match[1]), state


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if _NAME.search(p.name)), reverse=True)


def atomic(path: Path, write: Callable[[Path], None], *, named_by_hash: bool = False) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, sync it and rename it into place.

    Raises:
        UserError: the operating system refused (full disk, permissions); nothing is left half-written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        if named_by_hash:
            path = path.with_name(f"{path.stem}-{sha256(aside)[:16]}{path.suffix}")
        aside.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write {path}: {reason}; what was there before is intact") from error
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic(path, lambda aside: _write(aside, text))


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically, indented, keys in the order given."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(named: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors: the content hash of a model."""
    digest = hashlib.sha256()
    for name in sorted(named):
        tensor = unpacked(whole(named[name])).detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (a collective call), any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def unpacked(tensor: Tensor) -> Tensor:
    """The numbers that a quantised tensor of torchao stands for, any other tensor as it is."""
    return tensor.dequantize() if type(tensor).__module__.startswith("torchao.") else tensor


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state into named tensors and a JSON value that refers to them."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors)}"
            # A copy of its own: safetensors refuses tensors that share memory.
            tensors[name] = whole(value).detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {"map": [[k, walk(v)] for k, v in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [walk(v) for v in value]}
        if isinstance(value, list):
            return [walk(v) for v in value]
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__}")

    plain = walk(state)
    return tensors, plain


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`pack`."""
    if isinstance(plain, list):
        return [unpack(v, tensors) for v in plain]
    if isinstance(plain, dict):
        if _TENSOR in plain:
            return tensors[plain[_TENSOR]]
        if "tuple" in plain:
            return tuple(unpack(v, tensors) for v in plain["tuple"])
        return {k: unpack(v, tensors) for k, v in plain["map"]}
    return plain


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf8") as file:
        file.write(text)
        file.flush()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line that was cut off is left out."""
    if path.exists():
        for line in path.read_text(encoding="utf8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
