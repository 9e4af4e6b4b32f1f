"""The JSON Schema says what the checker says, as far as a schema can."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from limbeck.recipe import recipe_schema
from limbeck.registry import names

VALID: dict[str, Any] = {
    "title": "A toy",
    "paper": {"title": "T", "arxiv": "1503.02531", "year": 2015},
    "extends": ["a.yaml"],
    "data": {"a": {"name": "toy_data", "batch_size": 4}, "b": {"name": "toy_data", "rows": 3}},
    "teacher": {"name": "toy_net", "width": 64, "train": {"epochs": 5}, "mode": "eval", "method": "toy_plain"},
    "student": {"name": "toy_net", "width": 8, "freeze": ["x.*"], "act": "gelu"},
    "method": {
        "name": "toy_kd",
        "alpha": {"name": "toy_ramp", "end": 2},
        "temperature": None,
        "steps": "${env:STEPS:-3}",
        "pair": [1, 2],
        "losses": [{"name": "toy_loss", "weight": 0.5}, "toy_loss"],
        "terms": {"x": {"name": "toy_loss", "sharpness": 1}},
    },
    "train": {"steps": 3, "optimizer": {"name": "toy_sgd", "lr": 0.1}, "ema": [0.9], "schedule": "toy_ramp"},
    "phases": [{"name": "one", "train": {"steps": 2}}, {"from": "one", "method": {"temperature": 1}}],
    "evaluate": ["toy_accuracy", {"name": "toy_accuracy", "top": 5}],
    "cache": {"mode": "topk", "k": 3},
    "controls": {"cold": {}},
    "claim": {"says": "x", "arms": {"kd": {}}, "seeds": [1, 2], "expect": ["a.kd > 0"]},
    "export": ["onnx"],
    "stages": ["toy_stage", "my.lab:stage"],
}


class InvalidError(Exception):
    pass


def check(schema: Any, value: Any, root: dict[str, Any]) -> None:
    """The keywords of JSON Schema that ours uses, by their definition in the standard."""
    if schema is True:
        return
    if schema is False:
        raise InvalidError
    unknown = schema.keys() - {"$ref", "$schema", "$defs", "title", "description", "default", *KEYWORDS}
    assert not unknown, unknown
    if "$ref" in schema:
        check(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    for keyword, test in KEYWORDS.items():
        if keyword in schema and not test(schema, value, root):
            raise InvalidError(f"{keyword}: {value!r}")


def ok(schema: Any, value: Any, root: dict[str, Any]) -> bool:
    try:
        check(schema, value, root)
    except InvalidError:
        return False
    return True


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: is_number(v) and float(v).is_integer(),
    "number": is_number,
    "null": lambda v: v is None,
}


def properties(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    own = schema.get("properties", {})
    return not isinstance(value, dict) or all(
        ok(own[k] if k in own else schema.get("additionalProperties", True), v, root) for k, v in value.items()
    )


def items(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    if not isinstance(value, list):
        return True
    prefix = schema.get("prefixItems", [])
    rest = all(ok(schema.get("items", True), v, root) for v in value[len(prefix) :])
    return rest and all(ok(s, v, root) for s, v in zip(prefix, value, strict=False))


KEYWORDS: dict[str, Any] = {
    "type": lambda s, v, r: TYPES[s["type"]](v),
    "const": lambda s, v, r: v == s["const"],
    "enum": lambda s, v, r: v in s["enum"],
    "pattern": lambda s, v, r: not isinstance(v, str) or re.search(s["pattern"], v),
    "exclusiveMinimum": lambda s, v, r: not is_number(v) or v > s["exclusiveMinimum"],
    "minimum": lambda s, v, r: not is_number(v) or v >= s["minimum"],
    "exclusiveMaximum": lambda s, v, r: not is_number(v) or v < s["exclusiveMaximum"],
    "minItems": lambda s, v, r: not isinstance(v, list) or len(v) >= s["minItems"],
    "required": lambda s, v, r: not isinstance(v, dict) or all(k in v for k in s["required"]),
    "properties": properties,
    "additionalProperties": properties,
    "items": items,
    "prefixItems": items,
    "anyOf": lambda s, v, r: any(ok(o, v, r) for o in s["anyOf"]),
    "allOf": lambda s, v, r: all(ok(o, v, r) for o in s["allOf"]),
    "not": lambda s, v, r: not ok(s["not"], v, r),
    "if": lambda s, v, r: ok(s["then"], v, r) if ok(s["if"], v, r) else True,
    "then": lambda s, v, r: True,
}


@pytest.fixture
def schema(toys: None) -> dict[str, Any]:
    return recipe_schema()


def test_a_valid_recipe_passes(schema):
    assert ok(schema, VALID, schema)
    assert ok(schema, {**VALID, "data": "toy_data", "teacher": {"path": "x"}, "evaluate": None, "cache": None}, schema)
    assert ok(schema, {**VALID, "teacher": None, "teachers": {"a": {"name": "toy_net", "width": 1}}}, schema)
    assert ok(schema, {**VALID, "method": {"name": "my.lab:Method", "anything": 1}}, schema)


@pytest.mark.parametrize(
    ("trail", "value"),
    [
        (("titel",), "x"),
        (("title",), 3),
        (("paper", "yaer"), 1),
        (("method", "temprature"), 3),
        (("method", "alpha"), "x"),
        (("method", "pair"), [1]),
        (("method", "pair"), [1, 2, 3]),
        (("method", "steps"), "three"),
        (("method", "losses"), ["toy_los"]),
        (("method", "terms", "x", "sharp"), 3),
        (("method", "name"), "toy_kdd"),
        (("method", "alpha", "ende"), 3),
        (("student", "act"), "tanh"),
        (("student", "mode"), "eval"),
        (("teacher", "mode"), "train"),
        (("data", "a", "batch_size"), 0),
        (("data", "a", "rows"), "x"),
        (("train", "steps"), 0),
        (("train", "steps"), -1),
        (("train", "ema"), [1.5]),
        (("train", "precision"), "16"),
        (("train", "optimizer", "lrr"), 1),
        (("phases", 0, "nmae"), "x"),
        (("evaluate", 1, "tpo"), 3),
        (("cache", "mode"), "fp8"),
        (("claim", "sayz"), "x"),
        (("export", 0), "onxx"),
        (("stages", 0), "toy_stagee"),
    ],
)
def test_what_the_checker_refuses_the_schema_refuses(schema, trail, value):
    tree = copy.deepcopy(VALID)
    inside = tree
    for key in trail[:-1]:
        inside = inside[key]
    inside[trail[-1]] = value
    assert not ok(schema, tree, schema)


@pytest.mark.parametrize(("trail", "key"), [(("student",), "width"), (("claim",), "says"), (("evaluate", 1), "name")])
def test_what_is_missing_is_refused(schema, trail, key):
    tree = copy.deepcopy(VALID)
    inside: Any = tree
    for step in trail:
        inside = inside[step]
    del inside[key]
    assert not ok(schema, tree, schema)


def test_every_registered_name_is_offered_with_its_first_line(schema):
    for kind in ("method", "model", "data", "metric", "optimizer", "schedule", "stage", "loss", "transform"):
        offered = schema["$defs"][kind]["anyOf"][1]["properties"]["name"]["anyOf"]
        assert {o["const"] for o in offered if "const" in o} == set(names(kind))
    models = schema["$defs"]["model"]["anyOf"][1]["properties"]["name"]["anyOf"]
    assert {"const": "toy_net", "description": "A net."} in models


def test_the_schema_is_json_and_refers_only_to_what_it_defines(schema):
    text = json.dumps(schema, allow_nan=False)
    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= schema["$defs"].keys()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(p.get("description") for p in schema["properties"].values())


def test_the_standard_validator_agrees(schema):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(VALID)
