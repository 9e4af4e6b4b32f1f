import itertools
import json

import numpy as np
import pytest

from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipe import load_recipe
from limbeck.recommending import Forest, Past, candidates, past_runs, ranked, recommended, varying

TREE = {
    "title": "new",
    "data": {"name": "digits", "train_size": 60, "val_size": 30, "test_size": 30},
    "teacher": {"name": "mlp", "hidden": 16},
    "student": {"name": "mlp", "hidden": 4},
    "method": {"name": "kd", "temperature": 4.0},
    "train": {"steps": 2, "batch_size": 20},
    "controls": False,
    "evaluate": ["accuracy"],
}


def written(folder, name, method, student, teacher=0.8, key="accuracy", **plan):
    """A run's folder with what a recommendation reads."""
    rows = [["data.name", "digits", "recipe"], *([path.replace("__", "."), v, ""] for path, v in plan.items())]
    rows += [[f"method.{k}", v, ""] for k, v in method.items()]
    arms = {"student": {"role": "student", "metrics": {key: student}}}
    if teacher is not None:
        arms["teacher"] = {"role": "teacher", "metrics": {key: teacher}}
    spec = {"task": "classification", "shape": [1, 8, 8], "classes": 10, "vocab_size": None}
    (folder / name).mkdir(parents=True)
    results = {"title": name, "task": "classification", "spec": spec, "arms": arms, "plan": rows}
    (folder / name / "results.json").write_text(json.dumps(results))


def factorial(value, **levels):
    """A run for each combination of the levels, whose ratio is ``value`` of it."""
    names = list(levels)
    made = [dict(zip(names, combination, strict=True)) for combination in itertools.product(*levels.values())]
    return [Past(str(n), {"same": 1.0, **facts}, {"name": "kd"}, value(**facts)) for n, facts in enumerate(made)]


def test_importance_is_the_share_of_variance_of_each_main_effect():
    words = {"mi": 0.0, "mse": 2.0, "none": 4.0}
    runs = factorial(lambda a, b, c: 3 * a + words[b] + 0 * c, a=[0.0, 1.0], b=list(words), c=[0.0, 1.0])
    parts = {"a": np.var([0, 3]), "b": np.var([0, 2, 4]), "c": 0.0}
    total = sum(parts.values())
    found = Forest(runs).importance()
    assert list(found) == ["b", "a", "c"]
    for name, part in parts.items():
        assert found[name] == pytest.approx(part / total, abs=0.05)


def test_factors_that_only_act_together_explain_nothing_by_themselves():
    runs = factorial(lambda a, b: a * b, a=[-1.0, 1.0], b=[-1.0, 1.0])
    assert all(share < 0.05 for share in Forest(runs).importance().values())


def test_the_forest_foretells_what_it_saw_and_what_it_did_not():
    runs = factorial(lambda size, kind: size / 100 + (kind == "mi"), size=[10.0, 20.0, 30.0, 40.0], kind=["mi", "mse"])
    forest = Forest(runs)
    means, spreads = forest.foretell([run.facts for run in runs])
    assert np.allclose(means, [run.ratio for run in runs]) and np.allclose(spreads, 0)
    between = forest.foretell([{"size": 25.0, "kind": "mi"}, {"size": 25.0, "kind": "other"}])[0]
    assert 1.2 <= between[0] <= 1.3 and between[1] < between[0]
    assert varying([run.facts for run in runs]) == ["kind", "size"]


def test_past_runs_are_read_with_the_share_that_the_student_kept(tmp_path):
    written(tmp_path, "good", {"name": "kd", "temperature": 4.0}, 0.6)
    written(tmp_path / "deeper", "low", {"name": "dkd"}, 4.0, 2.0, key="perplexity")
    written(tmp_path, "alone", {"name": "supervised"}, 0.7, teacher=None)
    written(tmp_path, "broken_teacher", {"name": "kd"}, 0.7, teacher=0.0)
    runs = {run.name: run for run in past_runs(tmp_path)}
    assert {name: run.ratio for name, run in runs.items()} == {"good": pytest.approx(0.75), "low": 0.5}
    assert runs["good"].method == {"name": "kd", "temperature": 4.0}
    assert runs["good"].facts["method.temperature"] == 4.0 and runs["good"].facts["data.inputs"] == 64.0


def test_the_better_of_past_methods_comes_first_and_what_cannot_be_is_left_out(tmp_path):
    for n, size in enumerate((50, 500)):
        for name, method, student in (
            ("hot", {"name": "kd", "temperature": 4.0}, 0.7),
            ("cold", {"name": "kd", "temperature": 1.0}, 0.5),
            ("warm", {"name": "kd", "temperature": 2.5}, 0.6),
        ):
            written(tmp_path, f"{name}{n}", method, student + n / 100, data__train_size=size)
    written(tmp_path, "gone", {"name": "no_such_method"}, 0.9)
    recipe = load_recipe(TREE)
    found = recommended(recipe, tmp_path, top=2)
    assert [c.name for c in found.choices] == ["as it is", "kd of warm0"]
    assert found.choices[0].ratio > found.choices[1].ratio
    assert found.choices[1].overrides["method"]["temperature"] == 2.5
    assert found.runs == 7 and next(iter(found.importance)).startswith("method.")
    tried = candidates(recipe, past_runs(tmp_path))
    assert set(tried) == {"as it is", "kd of warm0", "kd of cold0"}, "each once, and none that does not exist"
    assert found.table()[0][:2] == ("rank", "configuration") and found.table()[1][1] == "as it is"


def test_arms_of_the_claim_are_candidates(tmp_path):
    for name, alpha in (("a", 0.1), ("b", 0.9)):
        written(tmp_path, name, {"name": "kd", "temperature": alpha}, alpha)
    claim = {
        "says": "x",
        "arms": {"kd": {}, "cold": {"method": {"temperature": 0.5}}},
        "expect": ["accuracy.kd > accuracy.cold"],
    }
    recipe = load_recipe({**TREE, "claim": claim})
    assert "cold" in {c.name for c in ranked(recipe, Forest(past_runs(tmp_path)), spec_of(recipe))}


def spec_of(recipe):
    from limbeck.data import load_data

    return load_data(recipe.data["data"]).spec


def test_without_past_runs_there_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(UserError, match=r"no past run to learn from under .*there is no results.json"):
        past_runs(tmp_path)
    written(tmp_path, "one", {"name": "kd"}, 0.7)
    with pytest.raises(UserError, match="the 1 past runs do not differ"):
        Forest(past_runs(tmp_path))
    (tmp_path / "r.yaml").write_text(json.dumps(TREE))
    assert main(["recommend", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("limbeck: no past run to learn from under")


def test_the_best_of_the_first_few_is_found_by_training(tmp_path, capsys):
    for name, steps, student in (("long", 40, 0.7), ("short", 1, 0.2)):
        written(tmp_path / "runs", name, {"name": "kd"}, student, train__steps=steps)
    claim = {
        "says": "x",
        "arms": {"kd": {}, "more": {"train": {"steps": 60}}},
        "expect": ["accuracy.kd < accuracy.more"],
    }
    (tmp_path / "new.yaml").write_text(json.dumps({**TREE, "claim": claim}))
    arguments = ["recommend", str(tmp_path / "new.yaml"), "--runs", str(tmp_path / "runs"), "--train", "--top", "2"]
    assert main([*arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["more", "as it is"]
    assert rows[0]["validation"] > rows[1]["validation"]
