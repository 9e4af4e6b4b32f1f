"""Values of a recipe against annotations: every mistake is collected with its line, none stops the rest.

A check is strict where a lenient one would hide a mistake (text is no number, true is no 1) and lenient where nothing
can be meant but one thing (1 is a number, 1e4 is a whole number). Numbers are finite.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from limbeck.paths import data_root
from limbeck.recipe.annotations import (
    SCALARS,
    Bound,
    Fields,
    FieldSpec,
    Tree,
    adapter,
    as_plain,
    container,
    describe,
    fits,
    is_scalar,
    keys_of,
    rank,
    show,
    takes_none,
)
from limbeck.recipe.environment import Environment, UnsetError, is_reference
from limbeck.recipe.mistakes import Mistake, did_you_mean
from limbeck.recipe.source import DEFAULT, Node, Trail, Where, dotted, read_scalar
from limbeck.registry import Kind, nearest

ABSENT: Any = object()
"""Stands for a value that was not given."""
BAD: Any = type("Bad", (), {"__repr__": lambda self: "BAD", "__bool__": lambda self: False})()
"""Stands for a value that is wrong (the mistake has been noted)."""

ALIASES = {
    "lr": "write optimizer: {lr: ...}",
    "learning_rate": "write optimizer: {lr: ...}",
    "weight_decay": "write optimizer: {weight_decay: ...}",
    "momentum": "write optimizer: {momentum: ...}",
    "warmup": "write schedule: {warmup: ...}",
}
"""What people look for in ``train:``."""


@dataclass(frozen=True)
class Row:
    """One effective value of a run and where it came from."""

    trail: Trail
    value: Any
    where: Where


@dataclass
class Values:
    """Collects mistakes and effective values while a tree is checked; :mod:`limbeck.recipe.blocks` adds the blocks."""

    folder: Path
    environment: Environment = field(default_factory=Environment)
    mistakes: list[Mistake] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    dropped: list[Trail] = field(default_factory=list)

    def wrong(self, at: Node | Where, trail: Trail, message: str, hint: str = "") -> Any:
        """Note a mistake; returns :data:`BAD`."""
        where = at.where if isinstance(at, Node) else at
        self.mistakes.append(Mistake(where.file, where.line, dotted(trail), message, hint))
        return BAD

    def row(self, trail: Trail, value: Any, where: Where) -> None:
        """Note an effective value."""
        self.rows.append(Row(trail, value, where))

    def trial(self) -> Self:
        """A collector of its own for a variant of the recipe, see :meth:`absorb`."""
        return type(self)(self.folder, self.environment)

    def absorb(self, trial: Values, trail: Trail = ()) -> None:
        """Take over the mistakes of a variant that are not known yet; ``trail`` says which variant it is."""
        known = {(m.file, m.line, m.message) for m in self.mistakes}
        for m in trial.mistakes:
            if (m.file, m.line, m.message) not in known:
                self.mistakes.append(replace(m, path=".".join(filter(None, (dotted(trail), m.path)))))

    def block(self, kind: str, node: Node, trail: Trail) -> Any:
        """The :class:`limbeck.registry.Block` that a node spells."""
        raise NotImplementedError

    # -----------------------------------------------------------------------------------------------------------------

    def value(self, annotation: Any, node: Node, trail: Trail) -> Any:
        """The node's value as the annotation wants it, or :data:`BAD` when it is wrong."""
        if annotation is Any or annotation is object:
            return self.anything(node, trail)
        if get_origin(annotation) is Annotated:
            return self._annotated(annotation, node, trail)
        if get_origin(annotation) in (Union, types.UnionType):
            return self._union(annotation, node, trail)
        if get_origin(annotation) is Literal:
            return self._literal(annotation, node, trail)
        if isinstance(annotation, type) and issubclass(annotation, Fields):
            return self.fields(annotation, node, trail)
        reader = {
            "sequence": self._sequence, "tuple": self._fixed, "mapping": self._mapping, "tree": self._tree,
        }.get(container(annotation) or "")  # fmt: skip
        if reader is not None:
            return reader(annotation, node, trail)
        if is_scalar(annotation):
            return self._scalar(annotation, node, trail)
        return self._foreign(annotation, node, trail)

    def _annotated(self, annotation: Any, node: Node, trail: Trail) -> Any:
        inner, *marks = get_args(annotation)
        kind = next((m.name for m in marks if isinstance(m, Kind)), None)
        if kind is not None:
            return self.block(kind, node, trail)
        value = self.value(inner, node, trail)
        for mark in marks:
            message = mark.against(value) if isinstance(mark, Bound) else None
            if message:
                return self.wrong(node, trail, f"{message}, not {show(node)}")
        return value

    def _union(self, annotation: Any, node: Node, trail: Trail) -> Any:
        members = sorted(get_args(annotation), key=rank)
        if node.value is None and types.NoneType in members:
            return None
        if is_reference(node.value) and self.text(node, trail) is BAD:
            return BAD
        attempts = []
        for member in (m for m in members if m is not types.NoneType):
            saved = len(self.mistakes), len(self.rows), len(self.dropped)
            value = self.value(member, node, trail)
            if value is not BAD and len(self.mistakes) == saved[0]:
                return value
            attempts.append((member, self.mistakes[saved[0] :]))
            del self.mistakes[saved[0] :], self.rows[saved[1] :], self.dropped[saved[2] :]
        for member, found in attempts:
            if len(attempts) == 1 or fits(member, node):
                self.mistakes += found
                return BAD
        return self.wrong(node, trail, f"must be {describe(annotation)}, not {show(node)}")

    def _literal(self, annotation: Any, node: Node, trail: Trail) -> Any:
        words = get_args(annotation)
        given = self.text(node, trail) if is_reference(node.value) else node.value
        if given is BAD:
            return BAD
        for word in words:
            if type(word) is type(given) and word == given:
                return word
        hint = did_you_mean(nearest(str(given), words)) if isinstance(given, str | int) else ""
        return self.wrong(node, trail, f"must be {describe(annotation)}, not {show(node)}", hint)

    def fields(self, model: type[Fields], node: Node, trail: Trail) -> Any:
        """The node as one of the recipe's own maps."""
        name = str(trail[-1]) if trail else "a recipe"
        if not node.is_map:
            return self.wrong(node, trail, f"must be a map of {', '.join(keys_of(model))}, not {show(node)}")
        known = keys_of(model)
        before = len(self.mistakes)
        for key, child in node.value.items():
            if key not in known:
                hint = ALIASES.get(key, "") if "optimizer" in known else ""
                hint = hint or did_you_mean(nearest(key, known))
                self.wrong(child, (*trail, key), f"{name} has no '{key}'", hint)
        values = {key: self.field(spec, node, key, trail) for key, spec in known.items()}
        values = {k: v for k, v in values.items() if v is not ABSENT}
        if len(self.mistakes) > before:
            return BAD
        made = self.construct(model, values, node, trail)
        if made is not BAD:
            for key in (k for k in known if k not in values):
                self.row((*trail, key), as_plain(getattr(made, known[key].attribute)), DEFAULT)
        return made

    def field(self, spec: FieldSpec, node: Node, key: str, trail: Trail) -> Any:
        """The value of one key of a map, BAD, or :data:`ABSENT` where it is left out and has a default."""
        at = (*trail, key)
        child = node.value.get(key)
        if child is not None and child.value is None and (not takes_none(spec.annotation) or spec.default is None):
            self.dropped.append(at)
            child = None
        if child is None:
            if spec.required:
                return self.wrong(node, at, f"'{key}' is missing: {spec.description or describe(spec.annotation)}")
            return ABSENT
        return self.recorded(spec.annotation, child, at)

    def recorded(self, annotation: Any, node: Node, trail: Trail) -> Any:
        """As :meth:`value`, noting the effective value unless what is inside has noted its own."""
        before = len(self.rows)
        value = self.value(annotation, node, trail)
        if value is not BAD and len(self.rows) == before:
            self.row(trail, self._given(node, trail), node.where)
        return value

    def _given(self, node: Node, trail: Trail) -> Any:
        """A node as plain values, without what null removes."""
        if node.is_map:
            kept = {k: v for k, v in node.value.items() if v.value is not None or (*trail, k) not in self.dropped}
            return {k: self._given(v, (*trail, k)) for k, v in kept.items()}
        if node.is_list:
            return [self._given(v, (*trail, i)) for i, v in enumerate(node.value)]
        return node.value

    def construct(self, model: type[Fields], values: Mapping[str, Any], node: Node, trail: Trail) -> Any:
        """The map made of checked values, or BAD when they do not go together."""
        known = keys_of(model)
        made = model(**{known[key].attribute: value for key, value in values.items()})
        faults = list(made.faults())
        for key, message in faults:
            self.wrong(node.value.get(key, node), (*trail, key), message)
        return BAD if faults else made

    # ----------------------------------------------------------------------------------------------------- containers

    def _sequence(self, annotation: Any, node: Node, trail: Trail) -> Any:
        if not node.is_list:
            return self.wrong(node, trail, f"must be {describe(annotation)}, not {show(node)}")
        member = next(iter(get_args(annotation)), Any)
        values = [self.value(member, child, (*trail, i)) for i, child in enumerate(node.value)]
        make = set if get_origin(annotation) in (set, frozenset) or annotation in (set, frozenset) else list
        return BAD if any(v is BAD for v in values) else make(values)

    def _fixed(self, annotation: Any, node: Node, trail: Trail) -> Any:
        members = get_args(annotation)
        if not members or members[-1] is Ellipsis:
            values = self._sequence(list[members[0]] if members else list, node, trail)  # type: ignore[valid-type]
            return BAD if values is BAD else tuple(values)
        if not node.is_list or len(node.value) != len(members):
            return self.wrong(node, trail, f"must be {describe(annotation)}, not {show(node)}")
        pairs = enumerate(zip(members, node.value, strict=True))
        values = [self.value(member, child, (*trail, i)) for i, (member, child) in pairs]
        return BAD if any(v is BAD for v in values) else tuple(values)

    def _mapping(self, annotation: Any, node: Node, trail: Trail) -> Any:
        if not node.is_map:
            return self.wrong(node, trail, f"must be {describe(annotation)}, not {show(node)}")
        key_type, value_type = get_args(annotation) or (str, Any)
        made: dict[Any, Any] = {}
        for key, child in node.value.items():
            at = (*trail, key)
            if child.value is None and not takes_none(value_type):
                self.dropped.append(at)
                continue
            word = self._key(key_type, key, child, at)
            made[word] = self.value(value_type, child, at)
        return BAD if any(v is BAD for v in (*made, *made.values())) else made

    def _key(self, annotation: Any, key: str, child: Node, trail: Trail) -> Any:
        if annotation in (str, Any):
            return key
        return self.value(annotation, Node(read_scalar(key), child.where), trail)

    def _tree(self, annotation: Any, node: Node, trail: Trail) -> Any:
        if not node.is_map:
            return self.wrong(node, trail, f"must be a map, not {show(node)}")
        return Tree(node.plain())

    def anything(self, node: Node, trail: Trail) -> Any:
        """The plain value of a node, with references to the environment replaced and numbers finite."""
        if node.is_map:
            made: Any = {k: self.anything(v, (*trail, k)) for k, v in node.value.items()}
            return BAD if any(v is BAD for v in made.values()) else made
        if node.is_list:
            made = [self.anything(v, (*trail, i)) for i, v in enumerate(node.value)]
            return BAD if any(v is BAD for v in made) else made
        if isinstance(node.value, str):
            return self.text(node, trail)
        if isinstance(node.value, float) and not math.isfinite(node.value):
            return self.wrong(node, trail, f"must be finite, not {show(node)}")
        return node.value

    # -------------------------------------------------------------------------------------------------------- scalars

    def text(self, node: Node, trail: Trail) -> Any:
        """The node's text with references to the environment replaced."""
        try:
            return self.environment.resolve(node.value)
        except UnsetError as error:
            return self.wrong(node, trail, str(error))

    def _scalar(self, kind: Any, node: Node, trail: Trail) -> Any:
        given = node.value
        if isinstance(given, str):
            given = self.text(node, trail)
            if given is BAD:
                return BAD
            if is_reference(node.value) and kind in (bool, int, float):
                read = read_scalar(given)
                if SCALARS[kind].accepts(read):
                    self.environment.forget(given)
                    given = read
        if kind is Path:
            return self.path(given, node, trail)
        if not SCALARS[kind].accepts(given):
            hint = "put it in quotes" if kind is str and isinstance(given, int | float | bool) else ""
            return self.wrong(node, trail, f"must be {describe(kind)}, not {show(node)}", hint)
        try:
            value = SCALARS[kind].make(given)
        except OverflowError:
            value = math.inf
        if isinstance(value, float) and not math.isfinite(value):
            return self.wrong(node, trail, f"must be finite, not {show(node)}")
        return value

    def path(self, given: Any, node: Node, trail: Trail) -> Any:
        """An existing file or folder, looked up beside the recipe, in the working directory and in the data folder."""
        if not isinstance(given, str) or not given or "\0" in given:
            return self.wrong(node, trail, f"must be a path, not {show(node)}")
        places = [node.where.folder or self.folder, self.folder, Path.cwd(), data_root()]
        for place in dict.fromkeys(places):
            try:
                found = place / Path(given).expanduser()
                if found.exists():
                    return found.resolve()
            except (OSError, RuntimeError, ValueError):
                continue
        looked = (
            "" if Path(given).is_absolute() else " beside the recipe, in the working directory or in the data folder"
        )
        return self.wrong(node, trail, f"there is no file or folder {show(node)}{looked}")

    def _foreign(self, annotation: Any, node: Node, trail: Trail) -> Any:
        """A type that only pydantic knows."""
        from pydantic import ValidationError

        checks = adapter(annotation)
        plain = self.anything(node, trail)
        if checks is None or plain is BAD:
            return plain
        try:
            return checks.validate_json(json.dumps(plain))  # strict, but text may spell what JSON has no type for
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should", "must")
            return self.wrong(node, trail, message)
