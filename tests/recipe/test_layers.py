"""extends, --set and overrides: what is laid on what, and that a mistake in either is named."""

from __future__ import annotations

import pytest

from limbeck.recipe import RecipeError, load_recipe
from limbeck.recipe.layers import merge
from limbeck.recipe.source import Where, from_plain


def laid(base, over, trail=()):
    return merge(from_plain(base, Where("b"), []), from_plain(over, Where("o"), []), trail).plain()


def test_maps_merge_and_everything_else_is_replaced():
    assert laid({"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": 2}) == {
        "a": {"x": 1, "y": [3]},
        "b": 1,
        "c": 2,
    }
    assert laid({"a": {"x": 1}}, {"a": 3}) == {"a": 3}


def test_arguments_of_another_part_are_not_inherited():
    base = {"method": {"name": "dkd", "alpha": 1}}
    assert laid(base, {"method": {"name": "kd"}}) == {"method": {"name": "kd"}}
    assert laid(base, {"method": {"name": "dkd", "beta": 2}}) == {"method": {"name": "dkd", "alpha": 1, "beta": 2}}
    assert laid(base, {"method": {"alpha": 3}}) == {"method": {"name": "dkd", "alpha": 3}}
    assert laid({"data": {"a": {"name": "x"}}}, {"data": {"name": "x"}}) == {"data": {"name": "x"}}


def test_keys_that_exclude_each_other_replace_each_other():
    assert laid({"train": {"epochs": 20, "clip": 1}}, {"train": {"steps": 5}}) == {"train": {"clip": 1, "steps": 5}}
    assert laid({"train": {"steps": 20}}, {"train": {"epochs": 5}}) == {"train": {"epochs": 5}}
    assert laid({"train": {"steps": 20}}, {"train": {"epochs": None}}) == {"train": {"steps": 20, "epochs": None}}
    assert laid({"teachers": {"a": 1}}, {"teacher": None}) == {"teacher": None}
    assert laid({"teacher": {"name": "x"}}, {"teachers": {"a": 1}}) == {"teachers": {"a": 1}}


def test_merging_changes_neither_layer():
    base, over = from_plain({"a": {"x": 1}}, Where("b"), []), from_plain({"a": {"y": 1}}, Where("o"), [])
    merge(base, over)
    assert base.plain() == {"a": {"x": 1}} and over.plain() == {"a": {"y": 1}}


# ---------------------------------------------------------------------------------------------------------- extends


def test_a_recipe_inherits_over_several_files(write):
    write(name="base/root.yaml")
    write("extends: root.yaml\ntrain: {epochs: 5}\nmethod: {alpha: 3}\n", name="base/mid.yaml")
    write("seed: 7\n", name="seed.yaml")
    top = write("extends: [base/mid.yaml, seed.yaml]\ntitle: Mine\nteacher: {width: 32}\n", name="top.yaml")
    recipe = load_recipe(top)
    assert (recipe.title, recipe.seed, recipe.train.epochs) == ("Mine", 7, 5.0)
    assert recipe.method.args == {"alpha": 3.0, "temperature": 2.0}
    assert recipe.teachers["teacher"].block.args == {"width": 32}
    assert "extends" not in recipe.tree
    assert recipe.origin["method.alpha"] == "base/mid.yaml:3"
    assert recipe.origin["method.temperature"] == "base/root.yaml:5"
    assert recipe.origin["seed"] == "seed.yaml:1"


def test_null_removes_what_was_inherited(write):
    write(name="root.yaml")
    top = write(
        "extends: root.yaml\nteacher: null\nmethod: toy_plain\ntrain: {epochs: null, steps: 4}\n", name="top.yaml"
    )
    recipe = load_recipe(top)
    assert not recipe.teachers and recipe.train.steps == 4 and recipe.train.epochs is None
    assert "teacher" not in recipe.tree and "epochs" not in recipe.tree["train"]


def test_mistakes_of_an_inherited_file_name_that_file(write):
    write("title: x\nstudent: {name: toy_net, wdith: 3}\n", name="root.yaml")
    top = write("extends: root.yaml\nmethod: toy_kdd\n", name="top.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(top)
    assert {(m.file, m.line) for m in caught.value.mistakes} >= {("root.yaml", 2), ("top.yaml", 2)}


def test_files_that_extend_each_other_are_refused(write):
    write("extends: b.yaml\n", name="a.yaml")
    write("extends: c/../a.yaml\n", name="b.yaml")
    with pytest.raises(
        RecipeError, match=r"b\.yaml:1: extends: the recipes extend each other: a\.yaml -> b\.yaml -> a"
    ):
        load_recipe("a.yaml")
    write("extends: self.yaml\n", name="self.yaml")
    with pytest.raises(RecipeError, match="extend each other"):
        load_recipe("self.yaml")


def test_the_same_base_may_be_reached_twice(write):
    write(name="root.yaml")
    write("extends: root.yaml\nseed: 1\n", name="a.yaml")
    write("extends: root.yaml\nslow: true\n", name="b.yaml")
    recipe = load_recipe(write("extends: [a.yaml, b.yaml]\n", name="top.yaml"))
    assert (recipe.seed, recipe.slow) == (1, True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rot.yaml", "did you mean 'root.yaml'"),
        ("3", "path"),
        ("[{a: 1}]", "path"),
        ("''", "path"),
        ("${env:NO_SUCH}", "NO_SUCH"),
    ],
)
def test_a_base_that_cannot_be_read_is_named_at_its_line(write, given, says):
    write(name="root.yaml")
    with pytest.raises(RecipeError, match=r"^top\.yaml:2: extends: ") as caught:
        load_recipe(write(f"title: x\nextends: {given}\n", name="top.yaml"))
    assert says in str(caught.value)


def test_a_broken_base_is_reported_alone(write):
    write("a: [1\n", name="root.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("extends: root.yaml\n", name="top.yaml"))
    assert [m.file for m in caught.value.mistakes] == ["root.yaml"]


# ------------------------------------------------------------------------------------------------------------ --set


def test_settings_reach_everywhere(load):
    recipe = load(
        _with_lists(),
        "method.temperature=1e-1",
        "train.clip=2",
        "evaluate.1.top=5",
        "method.losses.0.sharpness=3",
        "student={width: 9}",
        "title=a=b",
        "train.schedule=toy_ramp",
        "cache={}",
    )
    assert recipe.method.args["temperature"] == 0.1
    assert recipe.method.args["losses"][0].args == {"sharpness": 3.0}
    assert recipe.train.clip == 2.0 and recipe.train.schedule.name == "toy_ramp"
    assert [b.args for b in recipe.evaluate] == [{}, {"top": 5}]
    assert recipe.student.block.args == {"width": 9}
    assert recipe.title == "a=b"
    assert recipe.cache.mode == "fp16"
    assert recipe.origin["method.temperature"] == "--set"
    assert recipe.origin["student.width"] == "--set"
    assert recipe.origin["method.name"] == "toy.yaml:5"


def _with_lists() -> str:
    return """\
title: A toy
data: {name: toy_data}
teacher: {name: toy_net, width: 64}
student: {name: toy_net, width: 8}
method: {name: toy_kd, temperature: 2.0, losses: [{name: toy_loss}]}
evaluate: [toy_accuracy, {name: toy_accuracy, top: 3}]
"""


def test_a_new_name_drops_old_arguments_whatever_the_order_of_settings(load):
    for settings in (["student.name=toy_open", "student.deep=3"], ["student.deep=3", "student.name=toy_open"]):
        assert load(_with_lists(), *settings).student.block.args == {"deep": 3}


def test_a_setting_replaces_the_key_that_it_excludes(load):
    assert load(_with_lists() + "train: {epochs: 3}\n", "train.steps=10").train.steps == 10


def test_settings_make_the_maps_that_they_need(load):
    assert load(_with_lists(), "train.best.metric=nll", "train.best.mode=min").train.best.metric == "nll"


def test_null_in_a_setting_removes(load):
    recipe = load(_with_lists(), "evaluate=null", "method.losses=null", "data.rows=")
    assert recipe.evaluate is None and "losses" not in recipe.tree["method"] and "evaluate" not in recipe.tree


@pytest.mark.parametrize(
    ("setting", "path", "says"),
    [
        ("temperature", "", "KEY=VALUE"),
        ("=3", "", "KEY=VALUE"),
        ("a..b=3", "", "KEY=VALUE"),
        ("method.temperature=[1", "method.temperature", "not YAML"),
        ("method.temperature=!!x 1", "", "tag"),
        ("method.temprature=1", "method.temprature", "no argument 'temprature'"),
        ("method.temperature=hot", "method.temperature", "must be a number"),
        ("method.temperature.deep=1", "method.temperature.deep", "single value"),
        ("evaluate.2.top=1", "evaluate.2.top", "list of 2"),
        ("evaluate.-1.top=1", "evaluate.-1.top", "list of 2"),
        ("evaluate.first=1", "evaluate.first", "list of 2"),
        ("evaluate.0.top=1", "evaluate.0.top", "single value"),
        ("nonsense=1", "nonsense", "no 'nonsense'"),
        ("seed=1\n2: 3", "", ""),
    ],
)
def test_mistakes_in_settings_name_the_setting(wrong, setting, path, says):
    (mistake,) = wrong(_with_lists(), setting)
    assert mistake.file == "--set" and mistake.line == 0
    assert mistake.path == path or not path
    assert says in mistake.message
    assert str(mistake).startswith("--set: ")


# -------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_laid_and_checked_again(base):
    recipe = load_recipe(base)
    other = recipe.with_overrides({"method": {"name": "toy_plain"}, "teacher": None, "train": {"steps": 5}})
    assert other.method.name == "toy_plain" and not other.teachers and other.train.steps == 5
    assert recipe.method.name == "toy_kd" and recipe.teachers and recipe.train.epochs == 3
    assert other.slug == recipe.slug and other.origin["method.name"] == "overrides"
    with pytest.raises(RecipeError, match=r"^overrides: method\.temprature: toy_kd has no argument"):
        recipe.with_overrides({"method": {"temprature": 1}})
    with pytest.raises(RecipeError, match="plain value"):
        recipe.with_overrides({"method": {"temperature": object()}})


def test_overrides_may_be_blocks(base):
    recipe = load_recipe(base)
    assert recipe.with_overrides({"method": recipe.method, "student": recipe.student.block}).tree == recipe.tree


def test_a_plain_word_is_a_block_that_overrides_reach_into(base):
    recipe = load_recipe({**base, "method": "toy_kd", "student": {"name": "toy_net", "width": 1}})
    assert recipe.tree["method"] == {"name": "toy_kd"}
    assert recipe.with_overrides({"method": {"alpha": 2}}).method.args == {"alpha": 2.0}
    assert recipe.with_overrides({"method": "toy_plain"}).method.name == "toy_plain"
