"""Secrets come from the environment, reach the parts, and reach nothing that is written."""

from __future__ import annotations

import json

import pytest

from limbeck.recipe import load_recipe
from limbeck.recipe.environment import Environment, UnsetError


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("TOY_TOKEN", 's3cr"et/\\x')
    return 's3cr"et/\\x'


def test_parts_get_the_value_and_the_tree_keeps_the_reference(base, secret):
    base["data"]["token"] = "key-${env:TOY_TOKEN}"
    recipe = load_recipe(base)
    assert recipe.data["data"].args["token"] == f"key-{secret}"
    assert recipe.tree["data"]["token"] == "key-${env:TOY_TOKEN}"
    shown = json.dumps([recipe.tree, recipe.plan(), dict(recipe.origin), recipe.fingerprint(), repr(recipe)])
    assert "s3cr" not in shown


def test_the_hash_does_not_depend_on_the_secret(base, monkeypatch):
    base["data"]["token"] = "${env:TOY_TOKEN}"
    prints = set()
    for value in ("one-token", "two-token"):
        monkeypatch.setenv("TOY_TOKEN", value)
        prints.add(load_recipe(base).fingerprint())
    assert len(prints) == 1


def test_redaction_finds_every_spelling(base, secret):
    base["data"]["token"] = "${env:TOY_TOKEN}"
    recipe = load_recipe(base)
    text = f"plain {secret} json {json.dumps(secret)} url ?k=s3cr%22et%2F%5Cx end"
    assert recipe.redact(text) == ('plain ${env:TOY_TOKEN} json "${env:TOY_TOKEN}" url ?k=${env:TOY_TOKEN} end')
    assert load_recipe({**base, "data": {"name": "toy_data"}}).redact(text) == text


def test_overrides_made_from_built_blocks_do_not_leak(base, secret):
    base["data"]["token"] = "${env:TOY_TOKEN}"
    recipe = load_recipe(base)
    again = recipe.with_overrides({"data": recipe.data["data"].tree()})
    assert again.tree["data"]["token"] == "${env:TOY_TOKEN}"
    assert again.data["data"].args["token"] == secret
    assert again.redact(secret) == "${env:TOY_TOKEN}"


def test_short_secrets_do_not_eat_other_text(monkeypatch, base):
    monkeypatch.setenv("TOY_TOKEN", "12")
    base["data"]["token"] = "${env:TOY_TOKEN}"
    recipe = load_recipe(base)
    assert recipe.redact("loss 0.5127, 12.5, a12; token 12") == "loss 0.5127, 12.5, a12; token ${env:TOY_TOKEN}"


def test_numbers_from_the_environment_are_numbers_and_no_secrets(monkeypatch, base):
    monkeypatch.setenv("TOY_EPOCHS", "7")
    monkeypatch.setenv("TOY_T", "2e-1")
    base["train"]["epochs"] = "${env:TOY_EPOCHS}"
    base["method"] |= {"temperature": "${env:TOY_T}", "flag": "${env:TOY_FLAG:-true}", "name_of": "${env:TOY_EPOCHS}0"}
    recipe = load_recipe(base)
    assert recipe.train.epochs == 7.0 and recipe.method.args["temperature"] == 0.2
    assert recipe.method.args["flag"] is True and recipe.method.args["name_of"] == "70"
    assert "TOY_T" not in recipe.redact("0.2 2e-1")


def test_defaults_stand_in_for_what_is_unset_or_empty(monkeypatch):
    env = Environment({"SET": "x", "EMPTY": ""})
    assert env.resolve("a${env:SET}b${env:NOT:-d e}c") == "axbd ec"
    assert env.resolve("${env:EMPTY:-d}|${env:EMPTY}|${env:NOT:-}") == "d||"
    assert env.resolve("$HOME ${x} {env:SET}") == "$HOME ${x} {env:SET}"
    assert env.secrets == {"x": "${env:SET}"}


@pytest.mark.parametrize("text", ["${env:}", "${env:a b}", "${env}", "${env:1A}", "${env:A:-${env:SET}}", "${env:A"])
def test_malformed_references_are_refused(text):
    with pytest.raises(UnsetError, match="written"):
        Environment({"SET": "x"}).resolve(text)


def test_unset_variables_are_mistakes_wherever_they_stand(wrong, base):
    ref = "${env:TOY_UNSET}"
    base["title"] = ref
    base["method"] |= {"alpha": ref, "temperature": ref, "free": {"deep": [ref]}, "either": ref, "weights": {"a": ref}}
    base["train"]["precision"] = ref
    base["student"]["name"] = ref
    found = wrong(base)
    assert {m.path for m in found} == {
        "title", "method.alpha", "method.temperature", "method.free.deep.0", "method.either", "method.weights.a",
        "train.precision", "student.name",
    }  # fmt: skip
    assert all("TOY_UNSET is not set" in m.message for m in found)


def test_a_wrong_secret_is_not_shown_in_the_mistake(wrong, base, secret):
    ref = "${env:TOY_TOKEN}"
    base["method"] |= {"alpha": ref, "either": 1, "file": ref}
    base["train"] |= {"precision": ref, "deliver": "x"}
    base["student"]["act"] = ref
    base["seed"] = ref
    text = "\n".join(map(str, wrong(base)))
    assert "s3cr" not in text and text.count(ref) >= 4
