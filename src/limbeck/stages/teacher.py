"""Preparing teachers: loading them, or training them once and finding them again by what they depend on."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.engine.teacher import Teacher
from limbeck.export.store import Stored
from limbeck.models.building import build_model
from limbeck.paths import cache_root
from limbeck.registry import find, register
from limbeck.run import Arm, Context
from limbeck.training import Ingredients, train

if TYPE_CHECKING:
    from limbeck.recipe import Recipe


@register("stage")
def teacher(context: Context) -> None:
    """Load or train every teacher of the recipe, and put it before the student as an arm of its own."""
    for role, block in context.recipe.teachers.items():
        stored, arm = _prepare(context, role, block)
        made = Teacher(stored.module, stored.gives, role, block.mode)
        arm.teacher, arm.describe = made, describe(stored)
        context.teachers[role], context.arms[role] = made, arm
        context.say(f"{role}: {arm.describe}, {made.parameters():,} parameters, none trains; hash {made.hash[:12]}")


def _prepare(context: Context, role: str, block: Any) -> tuple[Stored, Arm]:
    label = "Teacher" if role == "teacher" else role
    arm = Arm(role, "teacher", label, context.recipe)
    facts = {} if block.block.name == "auto" else find("model", block.block.name).facts
    exact = facts.get("exact", False) or facts.get("trained", False)
    pretrained = block.path is not None or "path" in block.block.args or "hub" in block.block.args
    if exact or pretrained:
        offers = context.ingredients.offers
        spec = context.ingredients.main.spec.as_dict()
        return build_model(block.block, offers=offers, seed=context.recipe.seed, path=block.path, spec=spec), arm
    recipe = context.recipe.of_teacher(role)
    key = teacher_key(recipe, context)
    folder = cache_root() / "teachers" / f"{block.block.name}-{key[:16]}"
    ingredients = Ingredients(context.data, {}, context.fabric, context.quiet)
    trained = train(recipe, ingredients, folder, seed=context.recipe.seed, key=key, label=role)
    arm.folder, arm.numbers, arm.recipe = folder, trained.numbers, recipe
    return trained.model, arm


def teacher_key(recipe: Recipe, context: Context) -> str:
    """What a trained teacher depends on."""
    contents = {n: getattr(d.train, "fingerprint", "") for n, d in context.data.items()}
    facts = [recipe.fingerprint("student", "method", "train"), contents, context.recipe.seed, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def describe(stored: Stored) -> str:
    """A model in a few words: its name and the arguments that are plain numbers."""
    shown = {k: v for k, v in stored.block.args.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    return f"{stored.block.name}({', '.join(f'{k}={v}' for k, v in shown.items())})"
