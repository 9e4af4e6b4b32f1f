"""Whatever the input, the answer is a recipe or mistakes of one line each: never another error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.recipe import Recipe, RecipeError, load_recipe

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
THOROUGH = settings(QUICK, max_examples=60)
"""For tests that load several recipes in each example."""

VALID: dict[str, Any] = {
    "title": "A toy",
    "paper": {"title": "T", "arxiv": "1503.02531", "year": 2015},
    "data": {"a": {"name": "toy_data", "batch_size": 4}, "b": {"name": "toy_data", "rows": 3}},
    "teacher": {"name": "toy_net", "width": 64, "train": {"epochs": 5}, "mode": "eval"},
    "student": {"name": "toy_net", "width": 8, "freeze": ["x.*"]},
    "method": {
        "name": "toy_kd",
        "alpha": {"name": "toy_ramp", "end": 2},
        "pair": [1, 2],
        "losses": [{"name": "toy_loss", "weight": 0.5}],
        "free": {"x": [1, "${env:TOY_SECRET:-none}"]},
    },
    "train": {
        "steps": 3,
        "optimizer": {"name": "toy_sgd", "lr": 0.1},
        "ema": [0.9],
        "learners": {"critic": {"every": 2}},
    },
    "phases": [{"name": "one", "train": {"steps": 2}}, {"from": "one", "method": {"temperature": 1}}],
    "evaluate": ["toy_accuracy", {"name": "toy_accuracy", "top": 5}],
    "cache": {"mode": "topk", "k": 3, "budget": "1.5GB"},
    "controls": {"cold": {"method": {"temperature": 1}}},
    "claim": {"says": "x", "arms": {"kd": {}, "cold": {"teacher": None, "method": "toy_plain"}}, "seeds": [1, 2],
              "expect": ["a.kd > a.cold + 0.1"]},
    "export": ["onnx"],
    "stages": ["toy_stage"],
}  # fmt: skip

KEYS = st.one_of(
    st.sampled_from(sorted({"name", "train", *VALID, *VALID["method"], *VALID["train"]})), st.text(max_size=6)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["toy_net", "toy_kd", "toy_open", "${env:X}", "${env:X:-1}", "a:b", ":", "kd", "", "auto", "."]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(KEYS, t, max_size=4)), max_leaves=12
)


def is_recipe_or_mistakes(source: Any, *more: Any) -> Recipe | None:
    try:
        recipe = load_recipe(source, *more)
    except RecipeError as error:
        assert error.mistakes
        for mistake in error.mistakes:
            assert len(str(mistake).splitlines()) == 1 and str(mistake).isprintable()
        assert len(str(error).splitlines()) == len(error.mistakes)
        return None
    json.dumps([recipe.tree, recipe.plan(), dict(recipe.origin)], allow_nan=False)
    assert len(recipe.fingerprint()) == 64
    return recipe


def places(tree: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [trail, *(place for key, child in inside for place in places(child, (*trail, key)))][0 if trail else 1 :]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_the_valid_recipe_is_valid_and_comes_back(toys):
    recipe = is_recipe_or_mistakes(VALID)
    assert recipe is not None
    again = is_recipe_or_mistakes(yaml.safe_load(yaml.safe_dump(recipe.tree)))
    assert again is not None and again.fingerprint() == recipe.fingerprint()


@QUICK
@given(st.dictionaries(KEYS, TREES, max_size=8))
def test_random_trees(toys, tree):
    is_recipe_or_mistakes(tree)


CHANGES = st.tuples(st.sampled_from(places(VALID)), st.sampled_from(["put", "drop", "rename", "list", "map"]), TREES)


@THOROUGH
@given(st.lists(CHANGES, min_size=1, max_size=3))
def test_random_mutations_of_a_valid_recipe(toys, changes):
    tree = copy.deepcopy(VALID)
    for trail, act, value in changes:
        mutate(tree, trail, act, value)
    recipe = is_recipe_or_mistakes(tree)
    if recipe is not None:
        again = load_recipe(recipe.tree)
        assert again.fingerprint() == recipe.fingerprint() and again.plan() == recipe.plan()
        for name in recipe.arms:
            recipe.arm(name)
        for phase in recipe.phases:
            recipe.with_overrides({"phases": None, **phase.overrides})
        for role in recipe.teachers:
            recipe.of_teacher(role)


def mutate(tree: Any, trail: tuple[Any, ...], act: str, value: Any) -> None:
    for key in trail[:-1]:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return
    key = trail[-1]
    if not isinstance(tree, dict | list) or (isinstance(tree, list) and (not isinstance(key, int) or key >= len(tree))):
        return
    if isinstance(tree, dict) and key not in tree:
        return
    old = tree.pop(key)
    changed = {"put": value, "list": [old], "map": {"x": old}, "rename": old}.get(act)
    if act == "drop":
        return
    if isinstance(tree, list):
        tree.insert(key, changed)
    else:
        tree[f"{key}s" if act == "rename" else key] = changed


@QUICK
@given(st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda t: t.encode("utf8", "surrogatepass")),
    st.text("ab:-[]{},&*!|>'\"#%@`\n\t 01.?<~", max_size=80).map(str.encode),
))  # fmt: skip
def test_random_bytes_as_a_file(toys, folder, content):
    path = Path(folder) / "fuzz.yaml"
    path.write_bytes(content)
    is_recipe_or_mistakes(path)


@THOROUGH
@given(st.integers(0, 10_000), st.integers(0, 20), st.binary(max_size=4))
def test_a_valid_file_that_was_damaged(toys, folder, at, cut, put):
    text = yaml.safe_dump(VALID).encode()
    at %= len(text)
    path = Path(folder) / "damaged.yaml"
    path.write_bytes(text[:at] + put + text[at + cut :])
    is_recipe_or_mistakes(path)


@THOROUGH
@given(st.lists(st.one_of(
    st.text(max_size=20),
    st.builds("{}={}".format, st.sampled_from([".".join(map(str, p)) for p in places(VALID)]), st.one_of(
        st.text(max_size=8), st.sampled_from(["null", "1", "[1]", "{a: 1}", "toy_net", "1e-3", "true", "&a [*a]"]))),
), max_size=3))  # fmt: skip
def test_random_settings(toys, settings_given):
    is_recipe_or_mistakes(VALID, settings_given)


@THOROUGH
@given(TREES)
def test_random_overrides(toys, over):
    try:
        load_recipe(VALID).with_overrides(over)
    except RecipeError as error:
        assert all(len(str(m).splitlines()) == 1 for m in error.mistakes)
