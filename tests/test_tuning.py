"""Methods side by side, tuned alike: the dials, the budget, the ranking."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.recipe import load_recipe
from limbeck.registry import find
from limbeck.tuning import Ranking, Tuned, compare_methods, dial_of, interval
from toolkit.runs import command, refused, tiny, written

SID = {"method": {"name": "sid"}, "student": {"net": {"floor": 0.0}}}
DIGITS = {"name": "digits", "train_size": 60, "val_size": 40, "test_size": 40}


def test_the_dial_is_the_named_argument_or_the_first_weight() -> None:
    def dial(method: str) -> str | None:
        found = dial_of(find("method", method))
        return found.name if found else None

    assert (dial("dkd"), dial("kd"), dial("at"), dial("supervised")) == ("beta", "temperature", "beta", None)


def test_every_method_has_the_same_budget_and_other_seeds_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from limbeck import tuning

    trained: list[tuple[str, float]] = []
    make = tuning.validated_trial

    def watched(recipe, method, runs):  # type: ignore[no-untyped-def]
        train = make(recipe, method, runs)
        return lambda overrides, share: (trained.append((method, share)), train(overrides, share))[1]

    monkeypatch.setattr(tuning, "validated_trial", watched)
    recipe = load_recipe(tiny(data=DIGITS, train={"steps": 8, "batch_size": 16}, evaluate=["accuracy"]))
    ranking = compare_methods(recipe, ["kd", "dkd"], trials=3, seeds=2, runs=tmp_path / "runs", quiet=True)
    assert set(ranking.scores) == {"kd", "dkd", "alone"} == {m for m, _ in trained}
    for method in ranking.scores:
        shares = [s for m, s in trained if m == method]
        assert shares.count(0.25) == 3, "every method has as many trials"
        assert shares.count(1.0) >= 1 and shares.count(0.25) >= shares.count(0.5) >= shares.count(1.0)
    assert set(ranking.tuned["dkd"].chosen) == {"lr", "beta"} and set(ranking.tuned["alone"].chosen) == {"lr"}
    assert {row["seed"] for row in ranking.rows} == {recipe.seed, recipe.seed + 1}
    assert ranking.page is not None and ranking.page.is_file()
    again = compare_methods(recipe, ["kd", "dkd"], trials=3, seeds=2, runs=tmp_path / "runs", quiet=True)
    assert again.scores == ranking.scores
    path = written(tmp_path, "mine", data=DIGITS, train={"steps": 4, "batch_size": 16}, evaluate=["accuracy"])
    said = command(capsys, "compare", path, "--methods", "kd", "--trials", "1", "--seeds", "2")
    assert said.code == 0 and said.out.split()[:3] == ["rank", "method", "accuracy"]


def test_a_trial_that_the_method_refuses_has_ended_but_the_recipes_own_values_must_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from limbeck import tuning

    asked: list[float] = []

    def trainer(recipe, method, runs):  # type: ignore[no-untyped-def]
        def train(overrides, share):  # type: ignore[no-untyped-def]
            asked.append(overrides["train"]["optimizer"]["lr"])
            if asked[-1] != asked[0] or method == "dkd":
                raise UserError("lr is beyond what there is")
            return share

        return train

    monkeypatch.setattr(tuning, "validated_trial", trainer)
    recipe = load_recipe(tiny(data=DIGITS, train={"steps": 4, "batch_size": 16}, evaluate=["accuracy"]))
    tuned = tuning._tune(recipe, "kd", {}, 3, trainer(recipe, "kd", tmp_path), quiet=True)
    assert tuned.trials == 3 and tuned.chosen["lr"] == asked[0] and len(set(asked)) == 3
    with pytest.raises(UserError, match="beyond"):
        tuning._tune(recipe, "dkd", {}, 3, trainer(recipe, "dkd", tmp_path), quiet=True)


def test_generators_are_compared_by_their_samples(tmp_path: Path) -> None:
    recipe = load_recipe(
        {
            "title": "x",
            "teacher": {"name": "gaussian_ring", "modes": 3},
            "student": {"name": "few_step", "net": {"name": "mlp_denoiser", "width": 8, "depth": 1, "floor": 0.002}},
            "method": {"name": "consistency", "levels": 4},
            "train": {"steps": 8, "batch_size": 16},
            "evaluate": [{"name": "mixture_quality", "samples": 100}],
            "claim": {"says": "x", "arms": {"consistency": {}, "sid": SID}, "expect": ["mmd.sid < mmd.consistency"]},
        }
    )
    ranking = compare_methods(recipe, ["consistency", "sid"], trials=2, seeds=2, runs=tmp_path / "runs", quiet=True)
    assert (ranking.metric, ranking.higher) == ("energy_distance", False)
    assert set(ranking.scores) == {"consistency", "sid"}
    assert ranking.tuned["sid"].chosen.keys() == {"lr", "alpha"}
    assert ranking.tuned["sid"].overrides["student"] == SID["student"], "the arm of that name says what it needs"


def test_ranks_are_ranges_where_intervals_overlap() -> None:
    tuned = {m: Tuned(m, {}, {}, 0.0, 1) for m in "abc"}
    scores = {"a": [0.90, 0.91, 0.92], "b": [0.905, 0.915, 0.925], "c": [0.5, 0.51, 0.52]}
    ranking = Ranking("accuracy", True, tuned, scores)
    assert ranking.order() == ["b", "a", "c"]
    assert [ranking.ranks(m) for m in "abc"] == [(1, 2), (1, 2), (3, 3)]
    lower = Ranking("nll", False, tuned, scores)
    assert lower.order() == ["c", "a", "b"] and lower.ranks("c") == (1, 1)
    assert [row[0] for row in ranking.table()] == ["rank", "1-2", "1-2", "3"]


def test_the_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 3, 5, 8, 20):
        values = [float(i * i) for i in range(n)]
        wanted = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
        assert interval(values) == pytest.approx(wanted, rel=0.02)


def test_the_test_split_never_chooses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, "mine", train={"steps": 2, "batch_size": 16})
    refused(command(capsys, "compare", path, "--methods", "kd"), "validation split", "data.val_size")
    refused(command(capsys, "compare", path, "--methods", "kdd"), "no method is called 'kdd'")
    refused(command(capsys, "compare", path, path, "--methods", "kd"), "one recipe")
    with pytest.raises(UserError, match="at least one method"):
        compare_methods(load_recipe(path), [])
