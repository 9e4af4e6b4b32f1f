"""The Python API: distil live objects in a call, and load what a run delivered."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import registry
from limbeck.data.base import Data
from limbeck.data.python import as_data
from limbeck.engine.checkpoint import tensor_hash
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.recipe import load_recipe
from limbeck.run import Result, run_recipe


def distill(
    *,
    student: nn.Module | str | Path | Mapping[str, Any],
    teacher: nn.Module | str | Path | Mapping[str, Any] | None = None,
    data: Any = None,
    method: str | Mapping[str, Any] = "kd",
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
    **recipe: Any,
) -> Result:
    """Distil a teacher into a student, train the student alone beside it, and write the report.

    Args:
        student: a network (its weights are the start; the object itself is not changed), the name of a model, a
            folder, or a block (``{"name": "cnn", "width": 8}``).
        teacher: likewise; a network is used as it is.
        data: a name (``"digits"``), a block, ``(x, y)`` tensors, ``{"train": (x, y), "test": (x, y)}``, datasets, or a
            :class:`~limbeck.data.base.Data`. None for methods that need none.
        method: a method's name, or a block with its hyper-parameters.
        epochs, steps, batch_size, lr: the usual words of the ``train`` block.
        train: the rest of the ``train`` block.
        evaluate: metrics; by default those of the task.
        controls: whether the student is also trained alone.
        title: for the report.
        seed: of weights, order and noise.
        runs: the folder that the run directory is made in.
        quiet: no progress.
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
        settings["optimizer"] = {"name": "adamw", **settings.get("optimizer", {}), "lr": lr}
    tree = {
        "title": title,
        "seed": seed,
        "data": _data_block(data),
        "teacher": _model_block(teacher, "teacher"),
        "student": _model_block(student, "student"),
        "method": {"name": method} if isinstance(method, str) else dict(method),
        "train": settings,
        "evaluate": evaluate,
        "controls": controls,
        **recipe,
    }
    found = load_recipe({k: v for k, v in tree.items() if v is not None})
    return run_recipe(found, runs=runs, quiet=quiet)


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
    name = f"{role}-{type(model).__name__}-{tensor_hash(model.state_dict())[:12]}".lower()

    def make() -> nn.Module:
        return copy.deepcopy(model)

    make.__limbeck__ = {"kind": "model", "name": name, "trained": role == "teacher"}  # type: ignore[attr-defined]
    registry._LIVE["model", name] = make
    return name


def _data_block(data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    if isinstance(data, str):
        return {"name": data}
    if isinstance(data, Mapping) and ("name" in data or all(isinstance(v, Mapping) for v in data.values())):
        return dict(data)
    built = data if isinstance(data, Data) else as_data(data)
    fingerprint = getattr(built.train or built.test, "fingerprint", "")
    name = f"data-{fingerprint[:16]}"

    def make() -> Data:
        return built

    make.__limbeck__ = {"kind": "data", "name": name}  # type: ignore[attr-defined]
    registry._LIVE["data", name] = make
    return {"name": name}
