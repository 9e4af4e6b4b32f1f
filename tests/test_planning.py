"""What the plan of a run says before it starts."""

from __future__ import annotations

from limbeck.planning import plan_lines
from limbeck.recipe import load_recipe

TREE = {
    "data": "digits",
    "teacher": {"name": "mlp_denoiser", "width": 8},
    "student": {"name": "one_step", "net": {"name": "mlp_denoiser", "width": 8}},
    "method": "dmd",
}


def test_what_the_data_says_stands_before_a_default():
    recipe = load_recipe(TREE)
    assert ("teacher.shape", [2]) in [(key, list(value or [])) for key, value, _ in recipe.plan() if "shape" in key]
    text = " ".join(plan_lines(recipe, {"shape": [1, 8, 8]}, 0))
    assert "shape=[1, 8, 8]" in text and "shape=[2]" not in text
    assert "shape=[2]" in " ".join(plan_lines(recipe, {}, 0))
