"""Choosing the shape of a pruned student by a short retraining of several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from limbeck.codehash import module_hash
from limbeck.engine.checkpoint import write_json
from limbeck.engine.noise import uniform
from limbeck.engine.validation import Validator
from limbeck.errors import UserError
from limbeck.language.models.pruned import source_of
from limbeck.language.pruning.shapes import SIZES, Sizes, shapes_within
from limbeck.registry import register

if TYPE_CHECKING:
    from limbeck.recipe import Recipe
    from limbeck.run import Context

FOUND = "search.json"


@register("stage")
def search_shape(
    context: Context,
    *,
    space: dict[str, list[int]],
    budget: float,
    within: float = 0.05,
    steps: int = 50,
    most: int = 20,
    by: Literal["loss", "chance"] = "loss",
) -> None:
    """Choose the sizes of a student that is cut out of its teacher, by the loss after a short retraining.

    Minitron's search (Muralidharan et al. 2024, arXiv 2407.14679): all shapes near a budget of parameters are cut out
    and retrained for a few steps by the recipe's method; before that their order says little. Goes after ``teacher``
    and before ``train`` in a recipe's ``stages``; what follows trains the student that was chosen, from the start and
    for the whole of its steps. What was tried is kept in ``search.json``, the best one first. A search that was cut off
    goes on at the shape it was at.

    Args:
        context: of the run.
        space: sizes to combine, by ``layers``, ``hidden``, ``heads`` and ``ffn``; what is not named stays as the
            student's block has it.
        budget: parameters of the student; at most 1, a share of the teacher's.
        within: how far from the budget a shape may be, as a share of it.
        steps: that each shape is retrained for; 0 takes the loss as it was cut.
        most: shapes that are tried, those nearest the budget.
        by: shapes are chosen by their ``loss`` on the validation split, or by ``chance``, which the first must beat.

    Raises:
        UserError: the student is not pruned, nothing is near the budget, or the data has no validation split.
    """
    student = context.recipe.student.block
    if student.name != "pruned":
        raise UserError(f"search_shape: the student must be 'pruned', cut out of its teacher, not '{student.name}'")
    if steps < 0 or most < 1:
        raise UserError(f"search_shape: steps must not be negative and most 1 or more, got {steps} and {most}")
    if context.ingredients.main.val is None:
        raise UserError("search_shape: shapes are compared on a validation split: give data.val_fraction")
    teacher = source_of(student.args.get("of"), context.teachers).module
    fixed = {name: student.args[name] for name in SIZES if student.args.get(name) is not None}
    shapes = shapes_within(teacher, space, budget, within, fixed)[:most]
    folder = context.artifact("search", _key(context, [shapes, steps, by]))
    if not context.fabric.broadcast((folder / FOUND).is_file()):
        tried = _tried(context, shapes, steps, by)
        context.once(partial(folder.mkdir, parents=True, exist_ok=True))
        context.once(partial(write_json, folder / FOUND, {"by": by, "steps": steps, "tried": tried}))
    tried = json.loads((folder / FOUND).read_text(encoding="utf8"))["tried"]
    best = tried[0]
    context.recipe = context.recipe.with_overrides({"student": best["shape"]})
    words = ", ".join(f"{name} {size}" for name, size in best["shape"].items())
    after = f"loss {best['loss']:.4g} after {steps} steps, {best['cut']:.4g} as it was cut" if by == "loss" else by
    context.say(f"search_shape: {words}, {best['parameters']:,} parameters ({after}; {len(tried)} tried)")


def _tried(context: Context, shapes: list[tuple[Sizes, int]], steps: int, by: str) -> list[dict[str, Any]]:
    """What is known of every shape, the best one first; of equals the one nearest the budget."""
    found: list[dict[str, Any]] = [{"shape": sizes, "parameters": count} for sizes, count in shapes]
    if by == "chance":
        draws = uniform(torch.arange(len(found)), (1,), (context.seed, "search_shape"))
        return [found[i] for i in draws.flatten().argsort(stable=True).tolist()]
    for number, one in enumerate(found, start=1):
        label = f"shape {number} of {len(found)}"
        one["cut"], one["loss"] = _losses(context, one["shape"], steps, label)
        context.say(f"search_shape: {label}: {one['shape']} {one['cut']:.4g} -> {one['loss']:.4g}")
    return sorted(found, key=lambda one: float(one["loss"]))


def _losses(context: Context, sizes: Sizes, steps: int, label: str) -> tuple[float, float]:
    """The loss of a shape on the validation split, as it was cut and after its retraining, in nats per token."""
    recipe = _short(context.recipe, sizes, steps)
    cut = _loss(context, context.begun(recipe))
    return cut, _loss(context, context.trained(recipe, "shape", label).model.module) if steps else cut


def _short(recipe: Recipe, sizes: Mapping[str, int], steps: int) -> Recipe:
    """The recipe with a student of these sizes that is retrained for so many steps, by its last weights."""
    train = {"steps": max(steps, 1), "epochs": None, "early_stop": None}
    plain = {"phases": None, "claim": None, "controls": False, "stages": None}
    return recipe.with_overrides({**plain, "student": dict(sizes), "train": train})


def _loss(context: Context, module: nn.Module) -> float:
    source = context.ingredients.main.val
    assert source is not None
    return Validator(source)(module.to(context.fabric.device), context.fabric)["nll"]


def _key(context: Context, asked: list[Any]) -> str:
    """What the choice depends on."""
    val = context.ingredients.main.val
    facts = [
        asked,
        context.key_of(_short(context.recipe, {}, 1)),
        getattr(val, "fingerprint", ""),
        [module_hash(module) for module in (__name__, "limbeck.language.pruning.shapes")],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
