"""Blocks against signatures: what is refused, in which words, and what is let through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from limbeck import registry
from limbeck.recipe import load_recipe
from limbeck.registry import Block, register


def with_method(base, **arguments):
    return {**base, "method": {"name": "toy_kd", **arguments}}


@pytest.mark.parametrize(
    ("arguments", "path", "says", "hint"),
    [
        ({"temprature": 4.0}, "temprature", "toy_kd has no argument 'temprature'", "did you mean 'temperature'?"),
        ({"zzz": 4.0}, "zzz", "toy_kd has no argument 'zzz'", ""),
        ({"alpha": "1.0"}, "alpha", "must be a number, not '1.0'", ""),
        ({"alpha": True}, "alpha", "must be a number, not true", ""),
        ({"alpha": [1]}, "alpha", "must be a number, not a list", ""),
        ({"alpha": {"a": 1}}, "alpha", "must be a number, not a map", ""),
        ({"alpha": math.nan}, "alpha", "must be finite, not nan", ""),
        ({"alpha": math.inf}, "alpha", "must be finite, not inf", ""),
        ({"alpha": 10**400}, "alpha", "must be finite, not so large a number", ""),
        ({"temperature": "hot"}, "temperature", "must be a number, not 'hot'", ""),
        ({"steps": 1.5}, "steps", "must be a whole number, not 1.5", ""),
        ({"steps": True}, "steps", "must be a whole number, not true", ""),
        ({"steps": "3"}, "steps", "must be a whole number, not '3'", ""),
        ({"name_of": 3.10}, "name_of", "must be text, not 3.1", "put it in quotes"),
        ({"flag": 1}, "flag", "must be true or false, not 1", ""),
        ({"flag": "on"}, "flag", "must be true or false, not 'on'", ""),
        ({"either": 1.5}, "either", "must be a whole number or text, not 1.5", ""),
        ({"either": [1]}, "either", "must be a whole number or text, not a list", ""),
        ({"pair": [1]}, "pair", "must be a list of 2 values (a whole number, a whole number), not a list", ""),
        ({"pair": [1, "x"]}, "pair.1", "must be a whole number, not 'x'", ""),
        ({"weights": {"a": "x"}}, "weights.a", "must be a number, not 'x'", ""),
        ({"weights": [1]}, "weights", "must be a map of numbers, not a list", ""),
        ({"by_class": {"x": 1}}, "by_class.x", "must be a whole number, not 'x'", ""),
        ({"losses": {"name": "toy_loss"}}, "losses", "must be a list of loss blocks, not a map", ""),
        ({"losses": [{"name": "toy_los"}]}, "losses.0.name", "no loss is called 'toy_los'", "did you mean 'toy_loss'?"),
        ({"losses": [{"name": "toy_loss", "sharp": 1}]}, "losses.0.sharp", "toy_loss has no argument 'sharp'",
         "did you mean 'sharpness'?"),
        ({"terms": {"a": {"name": "toy_loss", "weight": "x"}}}, "terms.a.weight", "must be a number, not 'x'", ""),
        ({"terms": {"a": {"sharpness": 1}}}, "terms.a", "a loss block needs a 'name'", None),
        ({"critic": {"name": "toy_net"}}, "critic.width", "toy_net needs 'width' (a whole number)", ""),
        ({"critic": {"name": 3}}, "critic.name", "must be the name of a model, not 3", ""),
        ({"critic": 3}, "critic", "must be a model block ({name: ...}), not 3", ""),
        ({"alpha": {"name": "toy_ramp", "ende": 1}}, "alpha.ende", "toy_ramp has no argument 'ende'",
         "did you mean 'end'?"),
        ({"alpha": {"name": "toy_rmap"}}, "alpha.name", "no schedule is called 'toy_rmap'", "did you mean 'toy_ramp'?"),
        ({"steps": {"name": "toy_ramp"}}, "steps", "must be a whole number, not a map", ""),
        ({"file": "no/such.txt"}, "file", "there is no file or folder 'no/such.txt' beside the recipe, in the working "
         "directory or in the data folder", ""),
        ({"file": ""}, "file", "must be a path, not ''", ""),
        ({"free": [1, {"x": math.nan}]}, "free.1.x", "must be finite, not nan", ""),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_in_one_clear_line(wrong, base, arguments, path, says, hint):
    (mistake,) = wrong(with_method(base, **arguments))
    assert mistake.path == f"method.{path}"
    assert mistake.message == says
    assert hint is None or mistake.hint == hint or (hint == "" and path == "zzz")


@pytest.mark.parametrize(
    ("arguments", "built"),
    [
        ({"alpha": 1}, {"alpha": 1.0}),
        ({"temperature": None}, {"temperature": None}),
        ({"steps": 1e4}, {"steps": 10000}),
        ({"either": "x"}, {"either": "x"}),
        ({"pair": [3, 4]}, {"pair": (3, 4)}),
        ({"weights": {"a": 1, "b": None}}, {"weights": {"a": 1.0}}),
        ({"by_class": {0: 1, "7": 2}}, {"by_class": {0: 1.0, 7: 2.0}}),
        ({"losses": ["toy_loss"]}, {"losses": [Block("toy_loss")]}),
        ({"losses": None}, {}),
        ({"alpha": None}, {}),
        ({"terms": {"a": {"name": "toy_loss", "weight": 2, "student": "fc"}}},
         {"terms": {"a": Block("toy_loss", {"weight": 2.0, "student": "fc"})}}),
        ({"critic": {"name": "toy_net", "width": 3}}, {"critic": Block("toy_net", {"width": 3})}),
        ({"critic": {"name": "toy_open", "any": [1, "x"]}}, {"critic": Block("toy_open", {"any": [1, "x"]})}),
        ({"alpha": {"name": "toy_ramp", "end": 8}}, {"alpha": Block("toy_ramp", {"end": 8.0})}),
        ({"temperature": {"name": "toy_ramp"}}, {"temperature": Block("toy_ramp")}),
        ({"terms": {"a": {"name": "toy_loss", "sharpness": {"name": "toy_ramp"}}}},
         {"terms": {"a": Block("toy_loss", {"sharpness": Block("toy_ramp")})}}),
        ({"free": {"x": [1, None, True]}}, {"free": {"x": [1, None, True]}}),
    ],
)  # fmt: skip
def test_what_can_be_meant_in_one_way_only_is_taken(base, arguments, built):
    args = load_recipe(with_method(base, **arguments)).method.args
    assert args == built
    assert all(type(args[k]) is type(v) for k, v in built.items())


def test_all_mistakes_come_at_once_by_line(wrong):
    found = wrong(
        """\
        titel: A toy
        data: {name: toy_dat}
        teacher:
          name: toy_net
          width: wide
          train: {epohcs: 3}
        student: {name: toy_net}
        method:
          name: toy_kd
          temprature: 4.0
        train: {lr: 3, epochs: -1}
        evaluate: [toy_acuracy]
        """
    )
    assert [str(m) for m in found] == [
        "toy.yaml:1: titel: a recipe has no 'titel'; did you mean 'title'?",
        "toy.yaml:2: data.name: no data is called 'toy_dat'; did you mean 'toy_data'?",
        "toy.yaml:5: teacher.width: must be a whole number, not 'wide'",
        "toy.yaml:6: teacher.train.epohcs: train has no 'epohcs'; did you mean 'epochs'?",
        "toy.yaml:7: student.width: toy_net needs 'width' (a whole number)",
        "toy.yaml:10: method.temprature: toy_kd has no argument 'temprature'; did you mean 'temperature'?",
        "toy.yaml:11: train.lr: train has no 'lr'; write optimizer: {lr: ...}",
        "toy.yaml:11: train.epochs: must be greater than 0, not -1",
        "toy.yaml:12: evaluate.0.name: no metric is called 'toy_acuracy'; did you mean 'toy_accuracy'?",
    ]


def test_a_block_may_span_lines_and_the_mistake_names_the_right_one(wrong):
    found = wrong(
        """\
        data: {name: toy_data}
        student: {name: toy_net,
                  width: x,
                  deph: 3}
        method: toy_plain
        """
    )
    assert [(m.line, m.path) for m in found] == [(3, "student.width"), (4, "student.deph")]


def test_facts_of_the_data_need_not_be_given(base):
    assert "classes" not in load_recipe(base).student.block.args
    assert (
        load_recipe({**base, "student": {"name": "toy_net", "width": 1, "classes": 3}}).student.block.args["classes"]
        == 3
    )


def test_the_name_is_asked_for_with_what_stands_in_its_place(wrong, base):
    (mistake,) = wrong({**base, "student": {"nmae": "toy_net", "width": 3}})
    assert mistake.message == "a model block needs a 'name'" and mistake.hint == "is 'nmae' the name?"


def test_hostile_text_stays_on_one_line(wrong, base):
    hostile = "a\nb\u2028c\x1b[31m"
    for given in (
        {**base, hostile: 1},
        {**base, "student": {"name": hostile}},
        with_method(base, **{hostile: 1}),
        with_method(base, alpha=hostile),
        {**base, "claim": {"says": "x", "expect": [hostile]}},
    ):
        for mistake in wrong(given):
            assert len(str(mistake).splitlines()) == 1 and "\x1b" not in str(mistake)


# ------------------------------------------------------------------------------------------------------------ paths


def test_paths_are_looked_up_beside_the_recipe_that_wrote_them(write, tmp_path, monkeypatch):
    write("x", name="base/weights.bin")
    write("x", name="here.bin")
    write("x", name="store/data.bin")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "store"))
    write(
        """\
        data: {name: toy_data}
        student: {name: toy_net, width: 8, path: weights.bin}
        teacher: {name: toy_net, width: 8, path: here.bin}
        method: {name: toy_kd, file: data.bin}
        """,
        name="base/root.yaml",
    )
    recipe = load_recipe(write("extends: base/root.yaml\n", name="top.yaml"))
    assert recipe.student.path == tmp_path / "base/weights.bin"
    assert recipe.teachers["teacher"].path == tmp_path / "here.bin"
    assert recipe.method.args["file"] == tmp_path / "store/data.bin"
    assert recipe.tree["method"]["file"] == "data.bin"
    again = recipe.with_overrides({"seed": 3})
    assert again.student.path == recipe.student.path
    assert load_recipe(recipe.tree, folder=tmp_path / "base").student.path == recipe.student.path


def test_a_home_folder_and_an_absolute_path_are_understood(base, tmp_path, monkeypatch):
    (tmp_path / "w.bin").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(with_method(base, file="~/w.bin")).method.args["file"] == (tmp_path / "w.bin").resolve()
    assert load_recipe(with_method(base, file=tmp_path / "w.bin")).method.args["file"] == (tmp_path / "w.bin").resolve()


def test_a_path_that_the_system_refuses_is_a_mistake(wrong, base):
    for bad in ("x" * 5000, "a\0b", "~nosuchuser/x"):
        (mistake,) = wrong(with_method(base, file=bad))
        assert "path" in mistake.message or "no file" in mistake.message


# ------------------------------------------------------------------------------------------------- names of one's own


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        Path(f"{name}.py").write_text(text, encoding="utf8")

    return write


def test_a_dotted_path_is_checked_like_any_part(module, base, wrong):
    module("toy_lab_a", "class Mine:\n    def __init__(self, *, gain: float = 1.0): ...\n")
    assert load_recipe({**base, "method": {"name": "toy_lab_a:Mine", "gain": 2}}).method.args == {"gain": 2.0}
    (mistake,) = wrong({**base, "method": {"name": "toy_lab_a:Mine", "gian": 2}})
    assert mistake.hint == "did you mean 'gain'?"
    (mistake,) = wrong({**base, "method": {"name": "toy_lab_a:Mime"}})
    assert mistake.hint == "did you mean 'Mine'?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise RuntimeError('a\\nb')", "RuntimeError"),
        ("x = (", "SyntaxError"),
        ("import no_such_module_x", "no_such_module_x"),
    ],
)
def test_whatever_an_import_raises_is_a_mistake(module, base, wrong, text, says):
    name = f"toy_lab_{says.lower()}"
    module(name, text)
    (mistake,) = wrong({**base, "method": {"name": f"{name}:Mine"}})
    assert says in mistake.message and mistake.path == "method.name"


@pytest.mark.parametrize("name", [":", "a:", ":b", "os:path:join", "..x:y", "os:sep", ""])
def test_dotted_paths_that_name_nothing_are_mistakes(wrong, base, name):
    assert [m.path for m in wrong({**base, "student": {"name": name}})] == ["student.name"]


def test_types_that_only_pydantic_knows_are_checked_by_it(base, wrong, monkeypatch):
    from decimal import Decimal

    @register("model")
    def toy_odd(*, when: Decimal, odd: [1, 2] = None, unknown: Odd = None) -> None:  # noqa: F821
        """Odd annotations."""

    toy_odd.__annotations__["when"] = Decimal
    toy_odd.__annotations__["odd"] = [1, 2]
    assert registry.find("model", "toy_odd")
    load_recipe({**base, "student": {"name": "toy_odd", "when": "1.5", "odd": [3], "unknown": "x"}})
    (mistake,) = wrong({**base, "student": {"name": "toy_odd", "when": "soon"}})
    assert mistake.path == "student.when"


# ------------------------------------------------------------------------------------------------ what a method asks


def test_a_method_that_needs_a_teacher_says_so(wrong, base):
    del base["teacher"]
    (mistake,) = wrong(base)
    assert str(mistake) == "recipe: method: method toy_kd needs a teacher: add a 'teacher' block"


def test_a_teacher_that_cannot_give_what_is_needed_is_refused(wrong, base):
    base["teacher"] = {"name": "toy_images"}
    (mistake,) = wrong(base)
    assert mistake.path == "teacher"
    assert mistake.message == "method toy_kd needs a teacher that gives logits; toy_images gives images"
    (mistake,) = wrong({**base, "teacher": {"name": "toy_hub", "path": "x"}, "method": "toy_all"})
    assert "gives features; toy_hub gives logits" in mistake.message


def test_needs_are_told_beside_other_mistakes_of_the_same_blocks(wrong, base):
    found = wrong({**base, "teacher": {"name": "toy_images", "cuont": 3}, "method": {"name": "toy_kd", "x": 1}})
    assert {m.path for m in found} == {"teacher", "teacher.cuont", "method.x"}


def test_teachers_whose_signals_are_not_known_are_let_through(base, tmp_path, module):
    module("toy_lab_net", "def net(*, width: int = 1): ...\n")
    load_recipe({**base, "method": "toy_all", "teacher": {"name": "toy_lab_net:net"}})
    load_recipe({**base, "method": "toy_all", "teacher": {"path": str(tmp_path)}})


def test_the_role_that_a_method_asks_for_must_exist(wrong, base):
    del base["teacher"]
    base["teachers"] = {"big": {"name": "toy_net", "width": 3}}
    (mistake,) = wrong(base)
    assert "needs a teacher called 'teacher', the recipe has big" in mistake.message


def test_every_teacher_is_meant_by_the_star(wrong, base):
    del base["teacher"]
    base["teachers"] = [{"name": "toy_net", "width": 3}, {"name": "toy_images"}, {"name": "toy_net", "width": 4}]
    base["method"] = "toy_all"
    (mistake,) = wrong(base)
    assert mistake.path == "teachers.1"


def test_data_is_asked_for_unless_the_method_needs_none(wrong, base):
    del base["data"]
    (mistake,) = wrong(base)
    assert mistake.message == "method toy_kd learns from data: add a 'data' block"
    assert not load_recipe({**base, "method": {"name": "toy_free", "needed": 1}}).data


def test_a_teacher_that_nobody_asks_for_is_a_remark(base):
    assert load_recipe({**base, "method": "toy_plain"}).remarks == (
        "method toy_plain states no need of a teacher, the recipe has teacher",
    )
    assert not load_recipe(base).remarks
