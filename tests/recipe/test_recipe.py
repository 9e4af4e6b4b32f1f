"""A loaded recipe: its parts, its plan and hash, and the variants that are made of it."""

from __future__ import annotations

import json

import pytest

from limbeck.recipe import RecipeError, load_recipe
from limbeck.registry import Block

CLAIM = {
    "says": "it is better",
    "arms": {
        "kd": {},
        "hot": {"method": {"temperature": 9}},
        "plain": {"method": {"name": "toy_plain"}, "teacher": None},
    },
    "expect": ["accuracy.kd > accuracy.plain + 0.01"],
}


def test_a_recipe_is_read_whole(base):
    recipe = load_recipe(
        {
            **base,
            "paper": {"title": "T", "arxiv": "1503.02531", "year": 2015},
            "seed": 3,
            "slow": True,
            "evaluate": ["toy_accuracy", {"name": "toy_accuracy", "top": 5}],
            "cache": {"mode": "topk", "k": 5},
            "claim": CLAIM,
            "export": ["onnx"],
            "stages": ["toy_stage", {"name": "toy_stage", "rounds": 2}],
            "notes": "n",
            "licence": "MIT",
        }
    )
    assert (recipe.title, recipe.slug, recipe.path, recipe.seed, recipe.slow) == ("A toy", "a_toy", None, 3, True)
    assert recipe.paper == {"title": "T", "arxiv": "1503.02531", "year": 2015}
    assert recipe.data == {"data": Block("toy_data")} and recipe.stream_batch == {}
    assert recipe.student.block == Block("toy_net", {"width": 8})
    assert recipe.method == Block("toy_kd", {"temperature": 2.0})
    assert recipe.evaluate == [Block("toy_accuracy"), Block("toy_accuracy", {"top": 5})]
    assert (recipe.cache.mode, recipe.cache.k, recipe.cache.budget, recipe.cache.verify) == ("topk", 5, "4GB", 8)
    assert recipe.claim.seed_list == [0, 1, 2] and set(recipe.arms) == {"kd", "hot", "plain"}
    assert recipe.claim.expectations[0].names == {("accuracy", "kd"), ("accuracy", "plain")}
    assert recipe.export == ["onnx"]
    assert recipe.stages == [Block("toy_stage"), Block("toy_stage", {"rounds": 2})]
    assert recipe.controls is True and set(recipe.control_arms) == {"bare"}


def test_little_is_needed(load):
    recipe = load("student: {name: toy_net, width: 1}\nmethod: toy_plain\ndata: toy_data\n")
    assert recipe.title == "toy" and recipe.slug == "toy" and recipe.path.name == "toy.yaml"
    assert recipe.train.epochs == 20 and recipe.train.batch_size == 128 and recipe.train.averages == []
    assert recipe.train.optimizer == Block("adamw", {"lr": 2e-3}) and recipe.train.schedule == Block("cosine")
    assert recipe.evaluate is None and recipe.cache is None and recipe.claim is None and recipe.stages is None
    assert not recipe.teachers and not recipe.phases


def test_what_is_missing_is_told(wrong):
    assert [(m.path, m.line) for m in wrong("title: x\n")] == [("student", 1), ("method", 1)]


def test_null_means_not_given(base):
    recipe = load_recipe({**base, "evaluate": None, "cache": None, "notes": None, "phases": None, "seed": None})
    assert recipe.tree == base and recipe.seed == 0 and recipe.fingerprint() == load_recipe(base).fingerprint()


# ------------------------------------------------------------------------------------------- data, teachers, student


def test_streams_have_names_and_sizes(base):
    base["data"] = {"labelled": {"name": "toy_data", "batch_size": 8}, "unlabelled": {"name": "toy_data", "rows": 9}}
    recipe = load_recipe(base)
    assert recipe.data == {"labelled": Block("toy_data"), "unlabelled": Block("toy_data", {"rows": 9})}
    assert recipe.stream_batch == {"labelled": 8}
    assert set(recipe.with_overrides({"data": {"labelled": None}}).data) == {"unlabelled"}
    assert recipe.with_overrides({"data": {"name": "toy_data"}}).data == {"data": Block("toy_data")}


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        ({"nme": "toy_data"}, "data", "a data block needs a 'name'"),
        ({"a": {"rows": 1}}, "data.a", "a data block needs a 'name'"),
        ({"a b": {"name": "toy_data"}}, "data.a b", "letters"),
        ({"a": {"name": "toy_data", "batch_size": 0}}, "data.a.batch_size", "greater than 0"),
        ({"name": "toy_data", "batch_size": 3}, "data.batch_size", "no argument"),
        ([], "data", "must be a data block"),
        (3, "data", "must be a data block"),
    ],
)
def test_wrong_data_is_named(wrong, base, data, path, says):
    (mistake,) = wrong({**base, "data": data})
    assert mistake.path == path and says in mistake.message


def test_teachers_by_role_by_list_and_from_a_folder(base, tmp_path):
    del base["teacher"]
    base["method"] = "toy_all"
    both = {
        "big": {"name": "toy_net", "width": 9, "mode": "batch_stats", "licence": "MIT"},
        "old": {"path": str(tmp_path)},
    }
    recipe = load_recipe({**base, "teachers": both})
    assert recipe.teachers["big"].mode == "batch_stats" and recipe.teachers["big"].licence == "MIT"
    assert recipe.teachers["big"].method == Block("supervised") and recipe.teachers["big"].train == {}
    assert recipe.teachers["old"].block == Block("auto") and recipe.teachers["old"].path == tmp_path
    recipe = load_recipe({**base, "teachers": [{"name": "toy_net", "width": 9}, {"name": "toy_net", "width": 8}]})
    assert list(recipe.teachers) == ["teacher_0", "teacher_1"]


def test_an_argument_of_the_model_wins_over_the_key_of_the_same_name(base):
    recipe = load_recipe({**base, "student": {"name": "toy_hub", "path": "hub/id"}})
    assert recipe.student.block.args == {"path": "hub/id"} and recipe.student.path is None


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"teachers": {"a": {"name": "toy_net", "width": 1}}}, "teachers", "keep one"),
        ({"teacher": None, "teachers": {"name": "toy_net", "width": 1}}, "teachers", "holds one block"),
        ({"teacher": None, "teachers": 3}, "teachers", "must be a map"),
        ({"teacher": {"name": "toy_net", "width": 1, "mode": "train"}}, "teacher.mode", "one of"),
        ({"teacher": {"name": "toy_net", "width": 1, "path": "nowhere"}}, "teacher.path", "no file"),
        ({"teacher": {"path": ".", "width": 1}}, "teacher.width", "from a path takes no"),
        ({"teacher": {"name": "toy_net", "width": 1, "train": 3}}, "teacher.train", "must be a map"),
        ({"teacher": {"name": "toy_net", "width": 1, "method": "toy_k"}}, "teacher.method.name", "no method"),
        ({"teacher": {"name": "toy_net", "width": 1, "train": {"clip": 0}}}, "teacher.train.clip", "greater"),
        ({"student": {"name": "toy_net", "width": 1, "freeze": "all"}}, "student.freeze", "must be a list of texts"),
        ({"student": {"name": "toy_net", "width": 1, "mode": "eval"}}, "student.mode", "no argument"),
    ],
)
def test_wrong_models_are_named(wrong, base, change, path, says):
    mistake = wrong({**base, **change})[0]
    assert mistake.path == path and says in mistake.message


def test_the_recipe_of_a_teacher_holds_its_model_alone(base):
    base["student"] |= {"freeze": ["x"], "depth": 7}
    base["teacher"] |= {"train": {"steps": 9, "optimizer": {"lr": 1}}, "method": "toy_plain", "licence": "MIT"}
    base["train"] |= {"ema": 0.9, "deliver": "ema_0.9", "clip": 2}
    recipe = load_recipe(base).of_teacher("teacher")
    assert recipe.student.block == Block("toy_net", {"width": 64}) and recipe.student.freeze == ()
    assert recipe.method == Block("toy_plain") and not recipe.teachers and recipe.control_arms == {}
    assert (recipe.train.steps, recipe.train.epochs, recipe.train.deliver) == (9, None, "last")
    assert recipe.train.clip == 2 and recipe.train.averages == []
    assert recipe.train.optimizer == Block("toy_sgd", {"lr": 1.0})


def test_the_hash_of_a_teacher_does_not_depend_on_the_student(base):
    one = load_recipe(base).of_teacher("teacher")
    base["student"] = {"name": "toy_open"}
    base["method"] = "toy_plain"
    assert load_recipe(base).of_teacher("teacher").fingerprint() == one.fingerprint()
    base["teacher"]["width"] = 65
    assert load_recipe(base).of_teacher("teacher").fingerprint() != one.fingerprint()


# ------------------------------------------------------------------------------------------------------------ train


@pytest.mark.parametrize(
    ("train", "path", "says"),
    [
        ({"epochs": 1, "steps": 1}, "train.steps", "keep one"),
        ({"steps": 0}, "train.steps", "greater than 0"),
        ({"epochs": 0}, "train.epochs", "greater than 0"),
        ({"accumulate": 200}, "train.accumulate", "cannot be cut"),
        ({"ema": 1.0}, "train.ema", "less than 1"),
        ({"ema": [0.9, 2]}, "train.ema.1", "less than 1"),
        ({"ema": [0.9], "deliver": "ema_0.99"}, "train.deliver", "one of last, best, ema_0.9,"),
        ({"precision": "16"}, "train.precision", "one of"),
        ({"precision": 16}, "train.precision", "one of"),
        ({"devices": "all"}, "train.devices", "'auto' or a whole number"),
        ({"devices": 0}, "train.devices", "greater than 0"),
        ({"early_stop": {"patience": 3}}, "train.early_stop.metric", "missing"),
        ({"best": {"metric": "nll", "mode": "lowest"}}, "train.best.mode", "one of"),
        ({"learners": {"critic": {"optimizer": {"lrr": 1}}}}, "train.learners.critic.optimizer.lrr", "no argument"),
        ({"learners": {"critic": {"evry": 1}}}, "train.learners.critic.evry", "critic has no 'evry'"),
        ({"optimizer": {"name": "toy_sgd", "betas": [1]}}, "train.optimizer.betas", "2 values"),
        (3, "train", "must be a map"),
    ],
)
def test_wrong_training_is_named(wrong, base, train, path, says):
    (mistake,) = wrong(
        {**base, "train": {"optimizer": {"name": "toy_sgd"}, **train} if isinstance(train, dict) else train}
    )
    assert mistake.path == path and says in str(mistake)


def test_a_learner_changes_only_what_it_names(base):
    critic = {"optimizer": {"lr": 1.0}, "every": 5, "ema": 0.9}
    base["train"]["learners"] = {"critic": critic, "other": {"optimizer": "toy_sgd"}}
    train = load_recipe(base).train
    assert train.learners["critic"].optimizer == Block("toy_sgd", {"lr": 1.0})
    assert (train.learners["critic"].every, train.learners["critic"].ema) == (5, [0.9])
    assert train.learners["critic"].schedule is None and train.learners["critic"].clip is None
    assert train.learners["other"].optimizer == Block("toy_sgd", {"lr": 2e-3})


def test_the_optimizer_may_change_one_argument_of_the_default(load):
    optimizer = load(
        "student: toy_open\nmethod: toy_plain\ndata: toy_data\ntrain: {optimizer: {lr: 1}}\n"
    ).train.optimizer
    assert optimizer == Block("adamw", {"lr": 1.0})


def test_null_brings_the_default_optimizer_back(base):
    recipe = load_recipe(base).with_overrides({"train": {"optimizer": None}})
    assert recipe.train.optimizer == Block("adamw", {"lr": 2e-3})
    assert recipe.tree["train"] == {"epochs": 3}


# ----------------------------------------------------------------------------------------------------------- phases


def test_phases_change_the_recipe_one_after_the_other(base, tmp_path):
    base["phases"] = [
        {"name": "first", "method": "toy_plain", "train": {"steps": 5}, "learners": ["student"]},
        {"method": {"temperature": 3}, "parameters": ["head.*"], "from": "first"},
        {"data": {"rows": 3}, "from": str(tmp_path)},
    ]
    recipe = load_recipe(base)
    first, second, third = recipe.phases
    assert (first.name, second.name, third.name) == ("first", "phase_1", "phase_2")
    assert (first.learners, first.parameters, second.parameters) == (("student",), None, ("head.*",))
    assert (first.start, second.start, third.start) == (None, "first", tmp_path)
    alone = recipe.with_overrides({"phases": None, **first.overrides})
    assert alone.method.name == "toy_plain" and alone.train.steps == 5 and alone.train.epochs is None
    assert recipe.with_overrides({"phases": None, **second.overrides}).method.args == {"temperature": 3.0}
    assert recipe.with_overrides({"phases": None, **third.overrides}).data["data"].args == {"rows": 3}


def test_phases_that_all_name_a_method_need_no_other(base):
    del base["method"]
    base["phases"] = [{"method": "toy_kd"}, {"method": "toy_plain"}]
    assert load_recipe(base).method.name == "toy_kd"


@pytest.mark.parametrize(
    ("phase", "path", "says"),
    [
        ({"method": {"temprature": 3}}, "phases.1.method.temprature", "no argument"),
        ({"train": {"epohcs": 3}}, "phases.1.train.epohcs", "epochs"),
        ({"from": "frist"}, "phases.1.from", "did you mean 'first'"),
        ({"from": "phase_1"}, "phases.1.from", "neither an earlier phase nor a path"),
        ({"name": "first"}, "phases.1.name", "two phases"),
        ({"learner": ["x"]}, "phases.1.learner", "learners"),
        ({"learners": "x"}, "phases.1.learners", "list of texts"),
        (3, "phases.1", "must be a map"),
    ],
)
def test_wrong_phases_are_named(wrong, base, phase, path, says):
    (mistake,) = wrong({**base, "phases": [{"name": "first"}, phase]})
    assert mistake.path == path and says in str(mistake)


def test_a_setting_names_a_phase_without_losing_it(base):
    base["phases"] = [{"name": "a", "train": {"steps": 5}}]
    (phase,) = load_recipe(base, ["phases.0.name=b"]).phases
    assert phase.name == "b" and phase.overrides == {"train": {"steps": 5}}


# ------------------------------------------------------------------------------------------------ claim and controls


def test_an_arm_is_the_recipe_with_its_overrides(base):
    recipe = load_recipe({**base, "claim": CLAIM})
    assert recipe.arm("kd").method == recipe.method
    assert recipe.arm("hot").method.args == {"temperature": 9.0}
    assert not recipe.arm("plain").teachers and recipe.arm("plain").claim is None
    assert recipe.arm("kd").fingerprint("method", "train") == recipe.fingerprint("method", "train")


def test_further_arms_are_checked_and_known_to_the_claim(base, wrong):
    claim = {**CLAIM, "expect": ["a.kd > a.cold"]}
    recipe = load_recipe({**base, "claim": claim}, arms={"cold": {"method": {"temperature": 1}}, "hot": None})
    assert set(recipe.arms) == {"kd", "plain", "cold"} and recipe.arm("cold").method.args["temperature"] == 1
    assert set(load_recipe(base, arms={"one": {}}).arms) == {"one"}
    (mistake,) = wrong(base, arms={"cold": {"method": {"temp": 1}}})
    assert mistake.path == "arms.cold.method.temp" and mistake.file == "arms"
    assert "must be a map" in wrong(base, arms=[1])[0].message


def test_a_claim_without_arms_is_about_the_student(base):
    recipe = load_recipe({**base, "claim": {"says": "x", "expect": ["a.student > a.bare", "a.student < a.teacher"]}})
    assert set(recipe.arms) == {"student"}


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"expect": ["accuracy.kdd > 0.5"]}, "claim.expect.0", "did you mean 'kd'"),
        ({"expect": ["accuracy.kd > 0.5", "accuracy.kd ="]}, "claim.expect.1", "cannot be read"),
        ({"expect": ["accuracy > 0.5"]}, "claim.expect.0", "has no arm"),
        ({"expect": []}, "claim.expect", "at least one"),
        ({"expect": None}, "claim.expect", "missing"),
        ({"expect": "a.kd > 1"}, "claim.expect", "list of texts"),
        ({"says": None}, "claim.says", "missing"),
        ({"seeds": 0}, "claim.seeds", "greater than 0"),
        ({"seeds": [1, 1]}, "claim.seeds", "differ"),
        (
            {"arms": {"kd": {}, "plain": {"method": {"temprature": 1}}}},
            "claim.arms.plain.method.temprature",
            "temperature",
        ),
        ({"arms": {"kd": {}, "plain": {"studnet": 1}}}, "claim.arms.plain.studnet", "student"),
        ({"arms": {"kd": {}, "plain": {"teacher": None}}}, "claim.arms.plain.method", "needs a teacher"),
        ({"arms": {"kd": {}, "plain": 3}}, "claim.arms.plain", "must be a map"),
        ({"arms": {"kd": {}, "plain": {}, "a-b": {}}}, "claim.arms.a-b", "letters"),
        ({"sayz": 1}, "claim.sayz", "says"),
    ],
)
def test_wrong_claims_are_named(wrong, base, change, path, says):
    found = [m for m in wrong({**base, "claim": {**CLAIM, **change}}) if m.path == path]
    assert len(found) == 1 and says in str(found[0])


def test_an_arm_names_its_own_line_and_repeats_no_mistake_of_the_recipe(wrong):
    found = wrong(
        """\
        data: {name: toy_data}
        student: {name: toy_net, width: x}
        method: {name: toy_plain}
        claim:
          says: x
          arms:
            a: {}
            b:
              method:
                name: toy_kd
                temprature: 3
          expect: [m.a > m.b]
        """
    )
    assert [(m.line, m.path) for m in found] == [
        (2, "student.width"),
        (9, "claim.arms.b.method"),
        (11, "claim.arms.b.method.temprature"),
    ]


def test_controls_are_the_methods_or_the_recipes_own(base, wrong):
    assert load_recipe({**base, "controls": False}).control_arms == {}
    own = load_recipe({**base, "controls": {"cold": {"method": {"temperature": 1}}}})
    assert set(own.control_arms) == {"cold"}
    assert set(load_recipe({**base, "method": "toy_plain"}).control_arms) == {"alone"}
    (mistake,) = wrong({**base, "controls": {"cold": {"method": {"temp": 1}}}})
    assert mistake.path == "controls.cold.method.temp"
    assert wrong({**base, "controls": "yes"})[0].path == "controls"


def test_the_default_controls_are_those_of_the_method_class():
    from limbeck.engine.method import Method
    from limbeck.recipe.assemble import DEFAULT_CONTROLS

    assert dict(DEFAULT_CONTROLS) == dict(Method.controls)


# ------------------------------------------------------------------------------------------------- other plain fields


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"title": 3}, "title", "quotes"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"slow": "yes"}, "slow", "true or false"),
        ({"paper": {"arxiv": "1"}}, "paper.title", "missing"),
        ({"paper": {"title": "x", "arxiv": 1503.02}}, "paper.arxiv", "quotes"),
        ({"paper": {"title": "x", "yaer": 1}}, "paper.yaer", "year"),
        ({"cache": {"mode": "fp8"}}, "cache.mode", "fp16"),
        ({"cache": {"budget": "big"}}, "cache.budget", "2GB"),
        ({"cache": True}, "cache", "must be a map of mode, k"),
        ({"evaluate": "toy_accuracy"}, "evaluate", "must be a list of metric blocks"),
        ({"evaluate": [{"name": "toy_accuracy", "tpo": 1}]}, "evaluate.0.tpo", "top"),
        ({"export": ["onxx"]}, "export.0", "onnx"),
        ({"stages": ["toy_stagee"]}, "stages.0.name", "toy_stage"),
        ({"notes": ["x"]}, "notes", "text"),
    ],
)
def test_wrong_fields_are_named(wrong, base, change, path, says):
    (mistake,) = wrong({**base, **change})
    assert mistake.path == path and says in str(mistake)


# ---------------------------------------------------------------------------------------------------- tree and plan


def test_the_saved_tree_loads_to_the_same_recipe(base):
    recipe = load_recipe({**base, "claim": CLAIM, "evaluate": ["toy_accuracy"], "phases": [{"train": {"steps": 3}}]})
    again = load_recipe(json.loads(json.dumps(recipe.tree)))
    assert again.tree == recipe.tree and again.fingerprint() == recipe.fingerprint()
    assert again.plan() == recipe.plan() and again.train == recipe.train


def test_the_hash_follows_content_and_not_spelling(base):
    recipe = load_recipe(base)
    other = {k: base[k] for k in reversed(base)}
    other["method"] = {"temperature": 2, "name": "toy_kd"}
    assert load_recipe(other).fingerprint() == recipe.fingerprint()
    changed = load_recipe({**base, "seed": 1})
    assert changed.fingerprint() != recipe.fingerprint()
    assert changed.fingerprint("method", "student") == recipe.fingerprint("method", "student")
    assert recipe.fingerprint("method") != recipe.fingerprint("student")
    assert recipe.fingerprint("no.such") == recipe.fingerprint("no.such") != recipe.fingerprint("nor.such")


def test_the_plan_holds_every_value_and_its_origin(load):
    text = """\
        data: {name: toy_data}
        teacher: {name: toy_net, width: 64, train: {epochs: 5}}
        student: {name: toy_net, width: 8}
        method:
          name: toy_kd
          alpha: {name: toy_ramp}
        train: {optimizer: {name: toy_sgd}}
        evaluate: [toy_accuracy]
        """
    plan = {key: (value, where) for key, value, where in load(text, "method.steps=3").plan()}
    assert plan["method.name"] == ("toy_kd", "toy.yaml:5")
    assert plan["method.steps"] == (3, "--set")
    assert plan["method.temperature"] == (4.0, "default")
    assert plan["method.alpha.name"] == ("toy_ramp", "toy.yaml:6")
    assert plan["method.alpha.end"] == (1.0, "default")
    assert plan["student.classes"] == (None, "the data")
    assert plan["student.depth"] == (2, "default")
    assert plan["train.epochs"] == (20.0, "default")
    assert plan["train.optimizer.betas"] == ([0.9, 0.99], "default")
    assert plan["teacher.train.epochs"] == (5, "toy.yaml:2")
    assert plan["teacher.mode"] == ("eval", "default")
    assert plan["teacher.method"] == ({"name": "supervised"}, "default")
    assert plan["evaluate.0.top"] == (1, "default")
    assert "title" not in plan and json.dumps(plan)


def test_error_is_a_user_error_with_all_lines(base):
    from limbeck.errors import UserError

    with pytest.raises(UserError) as caught:
        load_recipe({**base, "seed": "x", "slow": 3})
    assert isinstance(caught.value, RecipeError)
    assert str(caught.value).splitlines() == [str(m) for m in caught.value.mistakes]
    assert len(caught.value.mistakes) == 2
