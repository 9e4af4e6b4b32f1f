"""Training the student, and the controls that show whether distillation helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limbeck.arms import arm_recipe
from limbeck.recipe import Recipe
from limbeck.registry import register
from limbeck.run import Arm, Context
from limbeck.stages.cache import cache
from limbeck.stages.teacher import describe, teacher
from limbeck.training import data_of

LABELS = {"alone": "Student alone"}


@register("stage", name="train")
def train_student(context: Context) -> None:
    """Train the student by the recipe's method."""
    add_arm(context, "student", "student", "Student", {})


@register("stage")
def controls(context: Context) -> None:
    """Train the control arms: those of the method, or those that the recipe names."""
    for name, overrides in context.recipe.control_arms.items():
        add_arm(context, name, "control", LABELS.get(name, name.replace("_", " ").capitalize()), overrides)


def add_arm(context: Context, name: str, role: str, label: str, overrides: Mapping[str, Any]) -> Arm:
    """Train (or find) one arm and put it into the context."""
    recipe = arm_recipe(context.recipe, overrides) if overrides else context.recipe
    own = _context_of(context, recipe)
    trained = own.trained(recipe, name, label.lower())
    arm = Arm(name, role, label, recipe, trained.folder, trained.numbers, found=trained.found)
    arm.describe = describe(trained.model)
    context.arms[name] = arm
    context.warnings += [f"{label}: {w}" for w in trained.numbers.get("warnings", [])]
    return arm


def _context_of(context: Context, recipe: Recipe) -> Context:
    """What an arm is trained with: the run's data and teachers, or its own where its recipe changes them."""
    data = dict(data_of(recipe, context.recipe, context.data))
    teachers = {r: t for r, t in context.teachers.items() if r in recipe.teachers}
    if data == context.data and all(context.recipe.teachers.get(r) == b for r, b in recipe.teachers.items()):
        return replace(context, recipe=recipe, teachers=teachers)
    own = replace(context, recipe=recipe, data=data, teachers={}, arms={}, quiet=True)
    teacher(own)
    cache(own)
    return replace(own, quiet=context.quiet)
