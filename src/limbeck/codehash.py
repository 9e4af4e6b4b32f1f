"""A hash of the code behind a name, so that what was trained by other code is not taken for the same."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from limbeck.recipe.recipe import DESCRIPTIVE
from limbeck.registry import _LIVE, ROOT, Part, find

SHARED = ("limbeck.losses", "limbeck.truncated")
"""What methods of every family stand on."""
DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""How a recipe names a user's own object: ``package.module:object``."""


def part_hash(part: Part) -> str:
    """Hash of the file that a part is in; of its code alone where it is an object of this process (a notebook's)."""
    live = _LIVE.get((part.kind, part.name))
    if live is not None:
        return _digest(object_code(live))
    return module_hash(part.module)


def module_hash(module: str) -> str:
    """Hash of a module's source file; empty where it has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    return _digest(Path(spec.origin).read_bytes())


def code_of(tree: Mapping[str, Any], method: str) -> dict[str, str]:
    """The code that a recipe's tree runs by name: its method's file, and the modules of every dotted name."""
    runs = {k: v for k, v in tree.items() if k not in DESCRIPTIVE}
    modules = {name.partition(":")[0] for name in _dotted(runs)}
    return {f"method {method}": part_hash(find("method", method)), **{m: module_hash(m) for m in sorted(modules)}}


@functools.cache
def toolkit_hash(module: str) -> str:
    """Hash of what a method's module stands on: the files of its family, and shared losses, that it imports."""
    found: dict[str, Path] = {}
    _gather(module, module.split(".")[:2], found)
    return _digest(b"".join(found[name].read_bytes() for name in sorted(found)))


def _gather(module: str, family: list[str], found: dict[str, Path]) -> None:
    """Add the files that a module of the package imports to ``found``, as far as they belong to its family."""
    file = _file_of(module)
    for node in ast.walk(ast.parse(file.read_bytes())) if file else ():
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
            path = _file_of(name) if name in SHARED or name.split(".")[:2] == family else None
            if path is not None and name not in found:
                found[name] = path
                _gather(name, family, found)


def _file_of(module: str) -> Path | None:
    """The source of a module of this package; None for anything else."""
    place = ROOT.parent.joinpath(*module.split("."))
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


def object_code(target: Any) -> bytes:
    """The compiled code of a function, or of a class with its own methods, without line numbers and addresses."""
    if isinstance(target, type):
        own = (object_code(v) for v in vars(target).values() if isinstance(v, types.FunctionType | property))
        return target.__qualname__.encode() + b"".join(own)
    if isinstance(target, property):
        return object_code(target.fget) if target.fget else b""
    found = getattr(target, "__code__", None)
    return _compiled(found) if found is not None else str(getattr(target, "__qualname__", "")).encode()


def _compiled(code: types.CodeType) -> bytes:
    return code.co_code + repr(code.co_names).encode() + b"".join(map(_constant, code.co_consts))


def _constant(value: Any) -> bytes:
    if isinstance(value, types.CodeType):
        return _compiled(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value).encode()


def _dotted(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _dotted(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _dotted(value)
    elif isinstance(tree, str) and DOTTED.fullmatch(tree):
        yield tree


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
