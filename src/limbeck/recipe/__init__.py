"""Recipes: loading, inheriting, overriding and checking them before anything is built. Nothing here imports torch."""

from __future__ import annotations

from limbeck.recipe.annotations import Tree
from limbeck.recipe.fields import Best, Cache, Claim, EarlyStop, LearnerTrain, Paper, Train
from limbeck.recipe.mistakes import Mistake, RecipeError
from limbeck.recipe.parts import Phase, StudentBlock, TeacherBlock
from limbeck.recipe.recipe import Recipe, load_recipe
from limbeck.recipe.schema import recipe_schema

__all__ = [
    "Best", "Cache", "Claim", "EarlyStop", "LearnerTrain", "Mistake", "Paper", "Phase", "Recipe", "RecipeError",
    "StudentBlock", "TeacherBlock", "Train", "Tree", "load_recipe", "recipe_schema",
]  # fmt: skip
