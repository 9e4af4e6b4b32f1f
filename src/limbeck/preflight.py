"""What can be known to stop a run later is said before anything is written or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_fabric import Fabric

from limbeck.arms import PhaseRecipe, arm_recipe, phase_recipes
from limbeck.data.base import Data
from limbeck.errors import UserError
from limbeck.recipe.parts import needs_teacher
from limbeck.registry import find
from limbeck.training import Ingredients, check_choice, loop_settings, make_method, make_stream, start_student

if TYPE_CHECKING:
    from limbeck.recipe import Recipe


def preflight(recipe: Recipe, data: Mapping[str, Data], fabric: Fabric) -> None:
    """Check everything that the trainings of a run need and that does not take a trained teacher to know.

    Raises:
        UserError: a method refuses its arguments, a batch cannot be cut as asked, a split is missing, the best weights
            are asked for where none can be told, a cache could not serve the method, the student cannot be built, or
            not be exported as asked, or a metric could judge nothing.
    """
    from limbeck.export.formats import refuse_early
    from limbeck.stages.cache import check_cache
    from limbeck.stages.evaluate import check_metrics

    check_cache(recipe)
    check_metrics(recipe, data)
    ingredients = Ingredients(data, {}, fabric, quiet=True)
    own = [recipe, *(arm_recipe(recipe, overrides) for overrides in recipe.control_arms.values())]
    for arm in own:
        _check_origin(arm)
    if not needs_teacher(recipe.student.block):
        refuse_early(start_student(recipe, ingredients, recipe.seed), recipe.export)
    for arm in [*own, *_taught(recipe)]:
        for phase in phase_recipes(arm):
            _check_phase(phase, recipe, ingredients)


def _check_origin(recipe: Recipe) -> None:
    """Refuse a student that is made out of a teacher which the recipe does not have."""
    block = recipe.student.block
    role = block.args.get("of")
    if needs_teacher(block) and (not recipe.teachers or (role is not None and role not in recipe.teachers)):
        there = ", ".join(recipe.teachers) or "none"
        raise UserError(f"student '{block.name}' is made out of a teacher; the recipe's teachers: {there}")


def _taught(recipe: Recipe) -> list[Recipe]:
    """The recipes of the teachers that will be trained, and of those that teach them."""
    found = []
    for role, teacher in recipe.teachers.items():
        if teacher.block.name != "auto" and teacher.path is None:
            facts = find("model", teacher.block.name).facts
            loaded = facts.get("exact") or facts.get("trained") or {"path", "hub"} & set(teacher.block.args)
            if teacher.finetune or not loaded:
                own = recipe.of_teacher(role)
                found += [own, *_taught(own)]
    return found


def _check_phase(phase: PhaseRecipe, recipe: Recipe, ingredients: Ingredients) -> None:
    own = phase.recipe
    part = find("method", own.method.name)
    if len(own.data) > 1 and part.module.startswith("limbeck.") and not part.facts.get("streams", False):
        raise UserError(f"method {part.name} learns from one stream of data, and there are {', '.join(own.data)}")
    method, schedules = make_method(own.method)
    if own.data != recipe.data:
        return  # data that is not loaded yet
    stream = make_stream(own, method, ingredients, own.seed)
    loop_settings(own, stream, schedules, seed=own.seed, label="", index=0, quiet=True)
    named = own.student.block.name
    gives = find("model", named).facts.get("gives", {"logits"}) if named != "auto" else {"logits"}
    check_choice(own, ingredients.main)
    if own.train.deliver == "best" and "logits" not in gives:
        raise UserError(f"train.deliver: the best weights are told by logits, and {named} gives {', '.join(gives)}")
