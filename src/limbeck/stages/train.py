"""Training the student, and the controls that show whether distillation helped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.registry import register
from limbeck.run import Arm, Context
from limbeck.stages.teacher import describe
from limbeck.training import Ingredients, arm_key, train

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
    recipe = (
        context.recipe.with_overrides({"claim": None, "controls": False, **overrides}) if overrides else context.recipe
    )
    teachers = {r: t for r, t in context.teachers.items() if r in recipe.teachers}
    ingredients = Ingredients(context.data, teachers, context.fabric, context.quiet)
    key = arm_key(recipe, ingredients, context.seed)
    folder = context.artifact(name, key)
    trained = train(recipe, ingredients, folder, seed=context.seed, key=key, label=label.lower())
    arm = Arm(name, role, label, recipe, folder, trained.numbers)
    arm.describe = describe(trained.model)
    context.arms[name] = arm
    context.warnings += [f"{label}: {w}" for w in trained.numbers.get("warnings", [])]
    return arm
