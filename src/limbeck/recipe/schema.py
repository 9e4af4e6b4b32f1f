"""JSON Schema (draft 2020-12) of recipes, so that editors complete and check them. Made from what is registered."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from limbeck.recipe.annotations import Bound, Fields, container, keys_of, takes_none
from limbeck.recipe.blocks import OFFERED, SCHEDULED
from limbeck.recipe.environment import REFERENCE
from limbeck.recipe.fields import StreamKeys, StudentKeys, TeacherKeys, Top, Train
from limbeck.registry import Kind, Param, Part, parts

KINDS = ("data", "model", "method", "loss", "metric", "optimizer", "schedule", "transform", "projector", "stage")
"""Every kind of part that a recipe can name."""

Schema = dict[str, Any]
_DOTTED: Schema = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "your own: package.module:object"}
_REFERENCE: Schema = {
    "type": "string",
    "pattern": f"^{REFERENCE.pattern.replace('?P<name>', '').replace('?P<default>', '')}$",
}
_BOUNDS = {"above": "exclusiveMinimum", "at_least": "minimum", "below": "exclusiveMaximum"}


def recipe_schema() -> Schema:
    """The schema of a recipe file."""
    known = {kind: parts(kind) for kind in KINDS}
    definitions = {kind: _block(kind, found) for kind, found in known.items()}
    definitions |= {
        "teacher": _block("model", known["model"], TeacherKeys),
        "student": _block("model", known["model"], StudentKeys),
        "stream": _block("data", known["data"], StreamKeys),
        "train": of_fields(Train),
        "environment": _REFERENCE,
    }
    top = of_fields(Top)
    top["properties"] |= _own_readings()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "limbeck recipe",
        **top,
        "$defs": definitions,
    }


def _own_readings() -> Schema:
    said = {key: spec.description for key, spec in keys_of(Top).items()}
    streams = {"type": "object", "additionalProperties": _ref("stream"), "not": {"required": ["name"]}}
    roles = {"type": "object", "additionalProperties": _nullable(_ref("teacher"))}
    files = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    readings = {
        "extends": files,
        "data": _nullable(_ref("data"), streams),
        "teacher": _nullable(_ref("teacher")),
        "teachers": _nullable(roles, {"type": "array", "items": _ref("teacher")}),
        "student": _nullable(_ref("student")),
        "method": _nullable(_ref("method")),
        "train": _nullable(_ref("train")),
    }
    return {key: {**schema, "description": said[key]} for key, schema in readings.items()}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _nullable(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, {"type": "null"}]}


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def _block(kind: str, found: list[Part], extra: type[Fields] | None = None) -> Schema:
    """A block of a kind: a plain name, or a map whose keys follow from its name."""
    beside = of_fields(extra)["properties"] if extra else {}
    says = [{"const": part.name, "description": _summary(part)} for part in found]
    block: Schema = {
        "type": "object",
        "properties": {"name": {"anyOf": [*says, _DOTTED, _ref("environment")]}},
        "allOf": [_when_named(part, beside) for part in found],
    }
    if "path" not in beside:
        block["required"] = ["name"]
    return {"description": f"a {kind} block", "anyOf": [{"anyOf": [*says, _DOTTED]}, block]}


def _when_named(part: Part, beside: Mapping[str, Schema]) -> Schema:
    own = {p.name: _of_param(part, p) for p in part.params}
    then: Schema = {"properties": {"name": True, **beside, **own}}
    if not part.open:
        then["additionalProperties"] = False
    needed = [p.name for p in part.params if p.required and not (part.kind == "model" and p.name in OFFERED)]
    if needed:
        then["required"] = needed
    return {"if": {"properties": {"name": {"const": part.name}}, "required": ["name"]}, "then": then}


def _of_param(part: Part, param: Param) -> Schema:
    schema = of_annotation(param.annotation)
    if part.kind in SCHEDULED and "float" in param.source:
        schema = {"anyOf": [schema, _ref("schedule")]}
    if not param.required and _is_json(param.default):
        schema = {**schema, "default": param.default}
    return schema


def _summary(part: Part) -> str:
    return part.doc.strip().split("\n")[0]


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int)


# ---------------------------------------------------------------------------------------------------------------------
# Annotations


def of_fields(model: type[Fields]) -> Schema:
    """The schema of one of the recipe's own maps. Null stands for a key that is not given."""
    properties, needed = {}, []
    for key, spec in keys_of(model).items():
        schema = of_annotation(spec.annotation)
        schema = schema if spec.required or takes_none(spec.annotation) else _nullable(schema)
        properties[key] = {**schema, "description": spec.description}
        if _is_json(spec.default):
            properties[key]["default"] = spec.default
        if spec.required:
            needed.append(key)
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": needed} if needed else made


def of_annotation(annotation: Any) -> Schema:
    """The schema of what an annotation takes; anything, where it is not known."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of_annotated(inner)
    if origin in (Union, types.UnionType):
        return {"anyOf": [of_annotation(member) for member in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if isinstance(annotation, type) and issubclass(annotation, Fields):
        return of_fields(annotation)
    shape = container(annotation)
    if shape is not None:
        return _of_container(shape, inner)
    return _of_scalar(annotation)


def _of_annotated(inner: tuple[Any, ...]) -> Schema:
    kind = next((m.name for m in inner[1:] if isinstance(m, Kind)), None)
    if kind:
        return _ref(kind)
    schema = of_annotation(inner[0])
    marks = [m for m in inner[1:] if isinstance(m, Bound)]
    bounds = {word: getattr(m, side) for m in marks for side, word in _BOUNDS.items() if getattr(m, side) is not None}
    if not bounds or "anyOf" not in schema:
        return {**schema, **bounds}
    return {"anyOf": [option if "$ref" in option else {**option, **bounds} for option in schema["anyOf"]]}


def _of_container(shape: str, inner: tuple[Any, ...]) -> Schema:
    if shape == "tree" or (shape == "mapping" and not inner):
        return {"type": "object"}
    if shape == "mapping":
        return {"type": "object", "additionalProperties": _nullable(of_annotation(inner[1]))}
    if shape == "tuple" and inner and inner[-1] is not Ellipsis:
        return {
            "type": "array",
            "prefixItems": [of_annotation(m) for m in inner],
            "minItems": len(inner),
            "items": False,
        }
    return {"type": "array", "items": of_annotation(inner[0])} if inner else {"type": "array"}


def _of_scalar(annotation: Any) -> Schema:
    if annotation is str or annotation is Path:
        return {"type": "string"}
    plain = {bool: "boolean", int: "integer", float: "number"}
    if annotation in plain:
        return {"anyOf": [{"type": plain[annotation]}, _ref("environment")]}
    if annotation is types.NoneType:
        return {"type": "null"}
    return {}
