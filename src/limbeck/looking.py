"""What is inside a model: the features that methods can compare, by module path (``limbeck show-features``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck import registry
from limbeck.data import load_data
from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.export.store import Stored
from limbeck.gallery import recipe_file
from limbeck.models import places
from limbeck.models.building import build_model
from limbeck.registry import Block

Row = dict[str, Any]


def features(
    model: str | Path, *, shape: Sequence[int] = (3, 32, 32), classes: int = 10, leaves: bool = False
) -> dict[str, list[Row]]:
    """The features of a model, or of every model of a recipe, by role.

    Args:
        model: a recipe's file or gallery name, the folder of a stored model, or a model's name (``vgg``,
            ``timm.models:resnet18``).
        shape: of one input, channels first, and ``classes``: for a model that no recipe or folder gives them.
        classes: see ``shape``.
        leaves: list modules without modules inside as well.

    Returns:
        Rows with ``path``, ``kind``, ``shape`` (without the batch), ``stride`` (input pixels per cell; None for tokens
        and vectors), ``suggested`` (a method compares it unless layers are named) and ``head``.

    Raises:
        UserError: there is no such thing, or a model cannot be built or run.
    """
    found = {}
    for role, (stored, spec) in _models(str(model), DataSpec(shape=tuple(shape), classes=classes)).items():
        found[role] = _rows(stored, spec, leaves)
    return found


def _models(name: str, given: DataSpec) -> dict[str, tuple[Stored, DataSpec]]:
    path = Path(name)
    if path.is_dir():
        stored = build_model(Block("auto"), offers={}, seed=0, path=path)
        spec = {k: v for k, v in (stored.spec or {}).items() if k in ("shape", "classes", "vocab_size", "task")}
        return {"model": (stored, DataSpec(**{**spec, "shape": tuple(spec.get("shape") or given.shape)}))}
    if ":" in name or name in registry.names("model"):
        return {"model": (build_model(Block(name), offers=given.offers(), seed=0), given)}
    return _of_recipe(recipe_file(name))


def _of_recipe(file: Path) -> dict[str, tuple[Stored, DataSpec]]:
    from limbeck.recipe import load_recipe

    recipe = load_recipe(file)
    if not recipe.data:
        raise UserError(f"{file} has no data to run its models on")
    spec = load_data(next(iter(recipe.data.values()))).spec
    models: dict[str, Any] = {"student": recipe.student, **recipe.teachers}
    return {
        role: (build_model(m.block, offers=spec.offers(), seed=0, path=m.path, spec=spec.as_dict()), spec)
        for role, m in models.items()
    }


def _rows(stored: Stored, spec: DataSpec, leaves: bool) -> list[Row]:
    batch = _example(spec)
    try:
        seen = places.places(stored.module, batch)
    except Exception as error:
        says = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"{stored.block.name} cannot read an input of shape {list(spec.shape)}: {says}") from error
    suggested = _or_none(places.stages, stored, batch) or []
    head = _or_none(places.head, stored, batch)
    end = head[0] if head else None
    size = spec.shape[-1] if len(spec.shape) == 3 else 0
    return [
        {
            "path": p.path,
            "kind": p.kind,
            "shape": list(p.shape),
            "stride": p.stride(size) if size else None,
            "suggested": p.path in suggested,
            "head": p.path == end,
        }
        for p in seen
        if leaves or not p.leaf or p.path in suggested or p.path == end
    ]


def _or_none(choose: Any, stored: Stored, batch: Mapping[str, Any]) -> Any:
    try:
        return choose(stored.module, batch)
    except UserError:
        return None


def _example(spec: DataSpec) -> dict[str, Any]:
    if spec.task == "language":
        return {"input_ids": torch.zeros(2, *spec.shape, dtype=torch.long)}
    return {"input": torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0))}


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows for a terminal, with a heading."""
    lines: list[tuple[str, ...]] = [("path", "module", "shape", "stride", "")]
    for row in rows:
        stride = f"{row['stride']:g}" if row["stride"] else ""
        mark = "head" if row["head"] else "suggested" if row["suggested"] else ""
        lines.append((row["path"], row["kind"], "x".join(map(str, row["shape"])), stride, mark))
    return lines
