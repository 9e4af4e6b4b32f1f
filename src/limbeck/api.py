"""The Python API: distil live objects in a call, and load what a run delivered."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import registry
from limbeck.arms import fingerprints
from limbeck.codehash import object_code
from limbeck.data.base import Data
from limbeck.data.corpora import SUFFIXES
from limbeck.data.python import NAMES, as_data
from limbeck.engine import rng
from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.method import Method
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.recipe import load_recipe
from limbeck.run import Result, run_recipe


def distill(
    *,
    student: nn.Module | str | Path | Mapping[str, Any],
    teacher: nn.Module | str | Path | Mapping[str, Any] | None = None,
    teachers: Mapping[str, Any] | None = None,
    data: Any = None,
    method: str | type[Method] | Mapping[str, Any] | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    train: Mapping[str, Any] | None = None,
    evaluate: list[Any] | None = None,
    controls: bool | Mapping[str, Any] = True,
    title: str = "Distillation",
    seed: int = 0,
    runs: str | Path = "runs",
    quiet: bool = False,
    fresh: bool = False,
    **recipe: Any,
) -> Result:
    """Distil a teacher into a student, train the student alone beside it, and write the report.

    Args:
        student: a network (its weights are the start; the object itself is not changed), the name of a model, a
            folder, or a block (``{"name": "cnn", "width": 8}``).
        teacher: likewise; a network is used as it is.
        teachers: several teachers by role, each as ``teacher``.
        data: a name (``"digits"``), a block, ``(x, y)`` tensors, ``{"train": (x, y), "test": (x, y)}``, datasets, or a
            :class:`~limbeck.data.base.Data`; or several streams by name (``{"labelled": ..., "unlabelled": ...}``),
            each any of these. A text file (``"corpus.txt"``) is read with the tokenizer in the teacher's folder, where
            there is one. None for methods that need none.
        method: a method's name or class, or a block with its hyper-parameters; by default ``word_kd`` where the data is
            a text file, and ``kd`` elsewhere.
        epochs, steps, batch_size, lr: the usual words of the ``train`` block.
        train: the rest of the ``train`` block.
        evaluate: metrics; by default those of the task.
        controls: whether the student is also trained alone.
        title: for the report.
        seed: of weights, order and noise.
        runs: the folder that the run directory is made in.
        quiet: no progress.
        fresh: start anew although the same call was run before (its directory is moved aside).
        **recipe: further blocks of a recipe (``cache``, ``phases``, ...).

    Returns:
        The result: ``.student`` (the trained network), ``.metrics``, ``.report``.

    Raises:
        RecipeError: the arguments are not a valid recipe.
        UserError: data or models that do not fit.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, **(train or {})}
    settings |= {k: v for k, v in {"epochs": epochs, "steps": steps}.items() if v is not None}
    if lr is not None:
        given = settings.get("optimizer", {})
        settings["optimizer"] = {"name": "adamw", **({"name": given} if isinstance(given, str) else given), "lr": lr}
    several = {role: _model_block(model, role) for role, model in (teachers or {}).items()}
    text = _text_file(data)
    tree = {
        "title": title,
        "seed": seed,
        "data": _text_block(text, teacher) if text else _data_blocks(data),
        "teacher": _model_block(teacher, "teacher"),
        "teachers": several or None,
        "student": _model_block(student, "student"),
        "method": _method_block(method or ("word_kd" if text else "kd")),
        "train": settings,
        "evaluate": evaluate,
        "controls": controls,
        **recipe,
    }
    found = load_recipe({k: v for k, v in tree.items() if v is not None})
    before = rng.state(torch.device("cpu"))
    try:
        return run_recipe(found, runs=runs, quiet=quiet, fresh=fresh)
    finally:
        rng.restore(before, torch.device("cpu"))  # the caller's random numbers go on as if nothing had been drawn


def load(folder: str | Path, *, into: nn.Module | None = None, trust_code: bool = False) -> nn.Module:
    """The model in a folder that a run delivered (``runs/.../student``), in evaluation mode.

    Args:
        folder: the model's.
        into: a network to load the weights into, instead of building the one that the folder names.
        trust_code: import the module that the folder names, where the model's class is not part of this library.

    Raises:
        UserError: the folder holds no model of this library, its weights are damaged, or it names code that is
            neither part of this library nor trusted.
    """
    return store.load(folder, into=into, trust_code=trust_code).module


def _model_block(model: Any, role: str) -> dict[str, Any] | None:
    if model is None:
        return None
    if isinstance(model, nn.Module):
        return {"name": _live_model(model, role)}
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, Path) or (isinstance(model, str) and Path(model).is_dir()):
        return {"path": str(model)}
    if isinstance(model, str):
        return {"name": model}
    raise UserError(f"{role} must be a network, a name, a folder or a block; got {type(model).__name__}")


def _live_model(model: nn.Module, role: str) -> str:
    """Register a live network under a name made of its class and content, so that runs of it are told apart."""
    digest = hashlib.sha256(tensor_hash(model.state_dict()).encode())
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())
    for kind in sorted({type(m) for m in model.modules()}, key=lambda kind: kind.__qualname__):
        if kind.__module__.partition(".")[0] not in ("torch", "transformers"):
            digest.update(object_code(kind))
    name = f"{role}-{type(model).__name__}-{digest.hexdigest()[:12]}".lower()

    def make() -> nn.Module:
        return copy.deepcopy(model)

    facts = {"kind": "model", "name": name, "trained": role != "student", "live": True}
    make.__limbeck__ = facts  # type: ignore[attr-defined]
    registry._LIVE["model", name] = make
    return name


def _method_block(method: Any) -> dict[str, Any]:
    if isinstance(method, Mapping):
        return dict(method)
    if isinstance(method, str):
        return {"name": method}
    if isinstance(method, type) and issubclass(method, Method):
        registry._LIVE["method", method.__name__] = method
        return {"name": method.__name__}
    raise UserError(f"method must be a name, a class derived from limbeck.Method, or a block; got {method!r}")


def _data_blocks(data: Any) -> dict[str, Any] | None:
    """One data block, or one for each stream."""
    if not isinstance(data, Mapping) or "name" in data or set(data) <= set(NAMES):
        return _data_block(data)
    return {name: _data_block(value) for name, value in data.items()}


def _text_file(data: Any) -> Path | None:
    """The text file that the data is, if it is one."""
    named = isinstance(data, str | Path) and str(data).endswith(SUFFIXES)
    return Path(data) if named else None


def _text_block(file: Path, teacher: Any) -> dict[str, Any]:
    """A language model's data from a file, in the tokens of a teacher that comes with a tokenizer."""
    folder = teacher.get("path") if isinstance(teacher, Mapping) else teacher
    words = Path(folder) if isinstance(folder, str | Path) else None
    own = {"tokenizer_path": str(words)} if words is not None and (words / "tokenizer.json").is_file() else {}
    return {"name": "text", "path": str(file), **own}


def _data_block(data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    if isinstance(data, str):
        return {"name": data}
    if isinstance(data, Mapping) and "name" in data:
        return dict(data)
    built = as_data(data)
    content = hashlib.sha256(json.dumps(fingerprints({"data": built}), sort_keys=True).encode()).hexdigest()
    name = f"data-{content[:16]}"

    def make() -> Data:
        return built

    make.__limbeck__ = {"kind": "data", "name": name}  # type: ignore[attr-defined]
    registry._LIVE["data", name] = make
    return {"name": name}
