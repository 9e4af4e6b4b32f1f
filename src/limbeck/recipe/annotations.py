"""Annotations as a recipe's types: how each is told in words, what it takes, which shape it has."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, dataclass_transform, get_args, get_origin

from limbeck.recipe.source import Node
from limbeck.registry import Block, Kind

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class Tree(dict[str, Any]):
    """A map that is checked later, when it is laid on another (the overrides of an arm, a partial ``train``)."""


def key(default: Any = MISSING, says: str = "", *, name: str | None = None) -> Any:
    """A key of a :class:`Fields` map: its default (none: it must be given), what it means, its name if not Python's."""
    metadata = {"says": says, "name": name}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
class Fields:
    """Base of the recipe's own maps, frozen dataclasses: fixed keys with a type, a default and a description each."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is wrong across fields."""
        return iter(())


@dataclass(frozen=True)
class Bound:
    """Marks an annotation: the number must lie above, at least at, or below a value."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None

    def against(self, value: Any) -> str | None:
        """What the bound says against a value, if anything."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.above is not None and not value > self.above:
            return f"must be greater than {self.above}"
        if self.at_least is not None and not value >= self.at_least:
            return f"must be at least {self.at_least}"
        return f"must be less than {self.below}" if self.below is not None and not value < self.below else None


@dataclass(frozen=True)
class FieldSpec:
    """One key of a :class:`Fields` map."""

    attribute: str
    annotation: Any
    default: Any
    required: bool
    description: str


def keys_of(model: type[Fields]) -> dict[str, FieldSpec]:
    """The keys of a map, with type, default and description."""
    if model not in _KEYS:
        _KEYS[model] = _read_keys(model)
    return _KEYS[model]


_KEYS: dict[type[Fields], dict[str, FieldSpec]] = {}


def _read_keys(model: type[Fields]) -> dict[str, FieldSpec]:
    hints = typing.get_type_hints(model, include_extras=True)
    specs = {}
    for f in fields(model):  # type: ignore[arg-type]
        required = f.default is MISSING and f.default_factory is MISSING
        default = None if required else f.default if f.default_factory is MISSING else f.default_factory()
        spec = FieldSpec(f.name, hints[f.name], default, required, f.metadata["says"])
        specs[f.metadata["name"] or f.name] = spec
    return specs


# ---------------------------------------------------------------------------------------------------------------------
# In words


@dataclass(frozen=True)
class Scalar:
    """A type of single values: its words, the test that a value passes, and the conversion."""

    says: str
    many: str
    accepts: Callable[[Any], bool]
    make: Callable[[Any], Any]


def _is_int(v: Any) -> bool:
    return type(v) is int or (type(v) is float and v.is_integer())


SCALARS: dict[Any, Scalar] = {
    bool: Scalar("true or false", "true or false", lambda v: type(v) is bool, bool),
    int: Scalar("a whole number", "whole numbers", _is_int, int),
    float: Scalar("a number", "numbers", lambda v: type(v) in (int, float), float),
    str: Scalar("text", "texts", lambda v: isinstance(v, str), str),
    Path: Scalar("a path", "paths", lambda v: isinstance(v, str), Path),
    types.NoneType: Scalar("null", "nulls", lambda v: v is None, lambda v: v),
}
_ORDER = (types.NoneType, bool, int, float, Path)


def rank(member: Any) -> int:
    """Order in which the members of a union are tried: the narrow before the wide, blocks last."""
    if member in _ORDER:
        return _ORDER.index(member)
    if get_origin(member) is Literal:
        return len(_ORDER)
    return {str: 20, Any: 40}.get(member, 30)


def fits(member: Any, node: Node) -> bool:
    """Whether a node has the outer shape that a member of a union wants, so that its mistakes are the ones to tell."""
    if get_origin(member) is Annotated:
        member = get_args(member)[0]
    if node.is_map:
        return container(member) in ("mapping", "tree") or (
            isinstance(member, type) and issubclass(member, (Fields, Block))
        )
    if node.is_list:
        return container(member) in ("sequence", "tuple")
    return is_scalar(member) and SCALARS[member].accepts(node.value)


def is_scalar(annotation: Any) -> bool:
    """Whether an annotation is one of single values."""
    try:
        return annotation in SCALARS
    except TypeError:  # not hashable
        return False


def container(annotation: Any) -> str | None:
    """The shape of an annotation of many values: sequence, tuple, mapping or tree; None for any other."""
    base = get_origin(annotation) or annotation
    if base is Tree:
        return "tree"
    if base is tuple:
        return "tuple"
    if base in (dict, Mapping, typing.Mapping):
        return "mapping"
    return "sequence" if base in (list, set, frozenset, Sequence, typing.Sequence) else None


def adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Pydantic's check of a type that is none of ours; None where pydantic knows it no better."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    for config in (ConfigDict(strict=True), None):  # some types (models, dataclasses) bring a config of their own
        try:
            return TypeAdapter(annotation, config=config)
        except (PydanticUserError, TypeError, NameError, AttributeError):
            continue
    return None


def takes_none(annotation: Any) -> bool:
    """Whether null is a value of its own for an annotation."""
    if get_origin(annotation) is Annotated:
        return takes_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(map(takes_none, get_args(annotation)))
    return annotation in (None, types.NoneType, Any) or (
        get_origin(annotation) is Literal and None in get_args(annotation)
    )


def describe(annotation: Any) -> str:
    """An annotation in words: "a number", "one of 'mean', 'sum'", "a list of texts"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_scalar(annotation):
        return SCALARS[annotation].says
    if origin is Annotated:
        kind = next((m.name for m in inner[1:] if isinstance(m, Kind)), None)
        return f"a {kind} block" if kind else describe(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(m) for m in sorted(inner, key=rank) if m is not types.NoneType)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(repr(w) for w in inner)
    return _describe_container(annotation, inner)


def _describe_container(annotation: Any, inner: tuple[Any, ...]) -> str:
    shape = container(annotation)
    if shape == "tuple" and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} values ({', '.join(map(describe, inner))})"
    if shape in ("tuple", "sequence"):
        return f"a list of {_plural(inner[0])}" if inner else "a list"
    if shape == "mapping" and inner:
        return f"a map of {_plural(inner[1])}"
    if shape is not None or (isinstance(annotation, type) and issubclass(annotation, Fields)):
        return "a map"
    return getattr(annotation, "__name__", str(annotation))


def _plural(annotation: Any) -> str:
    if is_scalar(annotation):
        return SCALARS[annotation].many
    if annotation is Any:
        return "values"
    words = describe(annotation)
    return words.removeprefix("a ") + "s" if words.endswith(" block") else words


def show(node: Node) -> str:
    """A value in a message, short and as written (a reference to the environment stays a reference)."""
    if node.is_map:
        return "a map"
    if node.is_list:
        return "a list" if node.value else "an empty list"
    if node.value is None or isinstance(node.value, bool):
        return {None: "null", True: "true", False: "false"}[node.value]
    text = repr(node.value) if not isinstance(node.value, int) or abs(node.value) < 10**30 else "so large a number"
    return text if len(text) <= 60 else text[:57] + "..."


def as_plain(value: Any) -> Any:
    """A default as plain maps, lists and scalars, for the plan."""
    if isinstance(value, Block):
        return value.tree()
    if isinstance(value, Mapping):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [as_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
