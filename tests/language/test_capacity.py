import json
import math

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.language.capacity import Optimum, Study, law, optimum, study
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

SIZES = [100, 200, 400, 800]


def test_of_a_parabola_over_log_size_the_minimum_is_found_exactly():
    losses = [0.7 * (math.log(t) - math.log(270)) ** 2 + 2 for t in SIZES]
    found = optimum(10, SIZES, losses)
    assert found.interior and found.teacher == pytest.approx(270) and found.student == 10


@pytest.mark.parametrize(("losses", "end"), [([1, 2, 3, 4], 100), ([4, 3, 2, 1], 800)])
def test_an_optimum_at_the_end_is_none_inside(losses, end):
    found = optimum(10, SIZES, losses)
    assert (found.interior, found.teacher) == (False, end)


def test_the_law_is_the_least_squares_line_through_zero():
    optima = [Optimum(10, 26.0, True), Optimum(20, 44.0, True), Optimum(40, 101.0, True)]
    wanted = np.linalg.lstsq(np.array([[10.0], [20.0], [40.0]]), np.array([26.0, 44.0, 101.0]), rcond=None)[0][0]
    assert law(optima) == pytest.approx(wanted)
    assert law([]) is None


def test_only_students_with_a_best_size_inside_count():
    inside = [(math.log(t) - math.log(250)) ** 2 for t in SIZES]
    losses = np.stack([inside, [4, 3, 2, 1]])[..., None].repeat(2, -1)
    made = Study([100, 300], SIZES, losses)
    assert made.ratio == pytest.approx(2.5)
    assert [o["interior"] for o in made.summary()["optima"]] == [True, False]
    with pytest.raises(ValueError, match="rising"):
        optimum(1, [3, 2, 1], [0, 0, 0])


def test_a_study_distils_every_pair_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    model = {"name": "causal_lm", "architecture": "llama", "hidden": 8, "layers": 1, "heads": 2}
    recipe = load_recipe(
        {
            "title": "Grid",
            "data": {"name": "text", "corpus": "grammar", "characters": 3000, "context": 16},
            "teacher": {**model, "train": {"steps": 2}},
            "student": model,
            "method": "capacity_law",
            "train": {"steps": 2, "batch_size": 4},
            "evaluate": ["perplexity"],
        }
    )
    widths = [{"hidden": 24}, {"hidden": 8}, {"hidden": 16}]
    made = study(recipe, widths, [{}], seeds=[3], run=run_recipe, runs=tmp_path)
    assert made.losses.shape == (1, 3, 1) and list(made.teachers) == sorted(made.teachers)
    assert made.students == [made.teachers[0]]
    kept = json.loads((tmp_path / "capacity.json").read_text())
    assert kept["losses"] == made.losses.tolist() and (tmp_path / "capacity.png").stat().st_size > 1000
    with pytest.raises(UserError, match="three teachers"):
        study(recipe, widths[:2], [{}], run=run_recipe, runs=tmp_path)
    with pytest.raises(UserError, match="no metric 'nil'"):
        study(recipe, widths, [{}], seeds=[3], metric="nil", run=run_recipe, runs=tmp_path)
