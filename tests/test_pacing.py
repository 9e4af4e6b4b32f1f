"""How many steps fit into a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.pacing import Pace, pace_of
from limbeck.recipe import load_recipe
from limbeck.tuning import compare_methods
from toolkit.runs import tiny

DIGITS = {"name": "digits", "train_size": 60, "val_size": 40, "test_size": 40}


def test_a_pace_is_what_comes_before_and_what_a_step_takes() -> None:
    asked: list[int] = []

    def spent(steps: int) -> float:
        asked.append(steps)
        return (3.0 if len(asked) == 1 else 0.5) + 0.01 * steps  # 2.5 seconds are for what is kept and found again

    pace = pace_of(spent, 1000)
    assert asked == [20, 20, 100]
    assert pace.step == pytest.approx(0.01) and pace.before == pytest.approx(3.0)
    assert pace.seconds_of(1000) == pytest.approx(13.0)
    assert pace.steps_in(13.0) == 1000 and pace.steps_in(8.0) == 500 and pace.steps_in(1.0) == 1


def test_very_short_trainings_can_be_measured() -> None:
    asked: list[int] = []
    pace_of(lambda steps: asked.append(steps) or float(steps), 3)
    assert asked == [2, 2, 4]


def test_steps_that_hardly_show_beside_what_comes_before_are_measured_for_longer() -> None:
    asked: list[int] = []

    def spent(steps: int) -> float:
        asked.append(steps)
        return 10.0 + 0.01 * steps

    assert pace_of(spent, 1000).step == pytest.approx(0.01)
    assert asked == [20, 20, 100, 200, 400]
    with pytest.raises(UserError, match="too few"):
        pace_of(lambda steps: 1.0, 1000)


def test_methods_that_do_more_in_a_step_get_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck import tuning

    paces = {"kd": Pace(0.0, 1.0), "dkd": Pace(0.0, 2.0), "alone": Pace(1.0, 0.5)}
    monkeypatch.setattr(tuning, "trainer", lambda recipe, overrides, method: method)
    monkeypatch.setattr(tuning, "pace_of", lambda method, steps: paces[method])
    recipe = load_recipe(tiny(data=DIGITS, train={"steps": 8, "batch_size": 16}, evaluate=["accuracy"]))
    ranking = compare_methods(
        recipe, ["kd", "dkd"], trials=1, seeds=2, runs=tmp_path / "runs", equal="time", quiet=True
    )
    assert ranking.steps == {"kd": 8, "dkd": 4, "alone": 14}
    for method, tuned in ranking.tuned.items():
        train = tuned.overrides["train"]
        assert train["steps"] == ranking.steps[method] and "lr" in train["optimizer"]
    head, *rows = ranking.table()
    assert head[4:6] == ("steps", "seconds") and {row[1]: row[4] for row in rows}["alone"] == "14"
    epochs = load_recipe(tiny(data=DIGITS, train={"steps": None, "epochs": 1, "batch_size": 16}))
    with pytest.raises(UserError, match=r"give train\.steps"):
        compare_methods(epochs, ["kd"], trials=1, seeds=2, runs=tmp_path, equal="time", quiet=True)


def test_a_training_is_timed_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.pacing import trainer

    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(tiny(data=DIGITS, train={"steps": 8, "batch_size": 16}))
    spent = trainer(recipe, {}, "student")
    assert spent(2) > 0 and spent(2) > 0
    assert not list(tmp_path.iterdir()), "nothing is left behind"
