"""The layers of a recipe (``extends:``, the file, ``--set``, the overrides of an arm) merged into one tree.

Maps are merged key by key; anything else is replaced. Three rules make an overlay mean what its author meant:

- a block whose ``name`` changes replaces the block below it: arguments of another part are not inherited;
- of two keys that exclude each other (``epochs`` and ``steps``, ``teacher`` and ``teachers``) the upper layer's wins;
- null removes: the value counts as not given (unless the argument itself takes null).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from limbeck.recipe.environment import Environment, UnsetError
from limbeck.recipe.mistakes import Mistake, did_you_mean
from limbeck.recipe.source import Node, Trail, UnreadableError, Where, dotted, parse, read_file, shown
from limbeck.registry import nearest

SHORTHANDS: tuple[Trail, ...] = (
    ("method",), ("student",), ("teacher",), ("data",), ("train", "optimizer"), ("train", "schedule"),
)  # fmt: skip
"""Where a plain word stands for a block: it becomes ``{name: word}`` before merging, so that overrides can reach in."""

SET = Where("--set")


def merge(base: Node, over: Node, trail: Trail = ()) -> Node:
    """The tree ``over`` laid on ``base``; neither is changed."""
    if not base.is_map or not over.is_map or _renamed(base, over, trail):
        return over
    hidden = _displaced(over, trail)
    merged = {k: v for k, v in base.value.items() if k not in hidden}
    for key, value in over.value.items():
        merged[key] = merge(merged[key], value, (*trail, key)) if key in merged else value
    return Node(merged, over.where)


def _renamed(base: Node, over: Node, trail: Trail) -> bool:
    if trail[:1] == ("phases",) and len(trail) == 2:
        return False  # the name of a phase names no part
    return "name" in over.value and ("name" not in base.value or over.value["name"].value != base.value["name"].value)


def _displaced(over: Node, trail: Trail) -> set[str]:
    if trail == ():
        pairs = (("teacher", "teachers"), ("teachers", "teacher"))
        return {other for key, other in pairs if key in over.value}
    if trail[-1] == "train":
        pairs = (("epochs", "steps"), ("steps", "epochs"))
        return {other for key, other in pairs if over.get(key) is not None}
    return set()


def spelled_out(root: Node) -> Node:
    """The tree with a plain word in a block's place written as ``{name: word}``."""
    for trail in SHORTHANDS:
        root = _spell(root, trail)
    return root


def _spell(node: Node, trail: Trail) -> Node:
    if not trail:
        return Node({"name": node}, node.where) if isinstance(node.value, str) else node
    key = trail[0]
    if not node.is_map or key not in node.value:
        return node
    return Node({**node.value, key: _spell(node.value[key], trail[1:])}, node.where)


# ---------------------------------------------------------------------------------------------------------------------
# extends


def read_layers(path: Path, environment: Environment, mistakes: list[Mistake]) -> Node:
    """The tree of a file with everything that it extends.

    Raises:
        UnreadableError: the file or one that it extends cannot be read, or they extend each other.
    """
    return _layers(path, environment, mistakes, ())


def extended(root: Node, environment: Environment, mistakes: list[Mistake], chain: tuple[Path, ...] = ()) -> Node:
    """The tree laid on those that its ``extends:`` names (a file, or a list of files of which later ones win)."""
    given = root.value.get("extends")
    own = spelled_out(Node({k: v for k, v in root.value.items() if k != "extends"}, root.where))
    if given is None or given.value is None:
        return own
    base: Node | None = None
    for item in given.value if given.is_list else [given]:
        layer = _layers(_base_file(item, environment, chain), environment, mistakes, chain)
        base = layer if base is None else merge(base, layer)
    return own if base is None else merge(base, own)


def _layers(path: Path, environment: Environment, mistakes: list[Mistake], chain: tuple[Path, ...]) -> Node:
    return extended(read_file(path, mistakes), environment, mistakes, (*chain, path))


def _base_file(item: Node, environment: Environment, chain: tuple[Path, ...]) -> Path:
    if not isinstance(item.value, str) or not item.value:
        raise UnreadableError(item.where, "must be the path of a recipe file, or a list of such", path="extends")
    try:
        text = environment.resolve(item.value)
    except UnsetError as error:
        raise UnreadableError(item.where, str(error), path="extends") from None
    path = Path(os.path.normpath((item.where.folder or Path.cwd()) / Path(text).expanduser()))
    if path in [Path(os.path.normpath(p.absolute())) for p in chain] or path in chain:
        cycle = " -> ".join(shown(p) for p in (*chain, path))
        raise UnreadableError(item.where, f"the recipes extend each other: {cycle}", path="extends")
    if "\0" in text or not path.exists():
        message = f"there is no file '{item.value}'"
        raise UnreadableError(item.where, message, did_you_mean(_near(path)), path="extends")
    return path


def _near(path: Path) -> str | None:
    try:
        return nearest(path.name, [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")])
    except (OSError, ValueError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# --set


def with_settings(root: Node, settings: Sequence[str], mistakes: list[Mistake]) -> Node:
    """The tree with each ``KEY=VALUE`` laid on it. Names are set before arguments, whatever the order given."""
    parsed = list(_settings(settings, mistakes))
    for keys, value in sorted(parsed, key=lambda s: s[0][-1] != "name"):
        try:
            root = spelled_out(_put(root, keys, value, ()))
        except KeyError as error:
            mistakes.append(Mistake(SET.file, 0, ".".join(keys), str(error.args[0])))
    return root


def _settings(settings: Sequence[str], mistakes: list[Mistake]) -> Iterable[tuple[tuple[str, ...], Node]]:
    for setting in settings:
        key, equals, text = setting.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys):
            mistakes.append(Mistake(SET.file, 0, "", f"'{setting}' must be KEY=VALUE, as in method.temperature=2"))
            continue
        before = len(mistakes)
        try:
            value = parse(text, SET, mistakes, fixed=True)
        except UnreadableError as error:
            mistakes.append(Mistake(SET.file, 0, key.strip(), f"the value {error.mistake.message}"))
            continue
        if len(mistakes) == before:
            yield keys, value


def _put(node: Node, keys: tuple[str, ...], value: Node, trail: Trail) -> Node:
    """The tree with one value set.

    Raises:
        KeyError: the way leads through a scalar or past the end of a list; its argument says so.
    """
    key, rest = keys[0], keys[1:]
    if node.is_list:
        return _put_item(node, key, rest, value, trail)
    if not node.is_map and node.value is not None:
        raise KeyError(f"'{dotted(trail)}' is a single value, it has no '{key}'")
    inside: dict[str, Node] = node.value or {}
    if not rest:
        own = Node(inside, node.where)
        laid = merge(own, spelled_at(Node({key: value}, node.where), trail), trail)
        return Node(laid.value, node.where)
    child = inside.get(key, Node(None, SET))
    return Node({**inside, key: _put(child, rest, value, (*trail, key))}, node.where)


def spelled_at(node: Node, trail: Trail) -> Node:
    """As :func:`spelled_out`, for a part of the tree that hangs at ``trail``."""
    for short in SHORTHANDS:
        if short[: len(trail)] == trail:
            node = _spell(node, short[len(trail) :])
    return node


def _put_item(node: Node, key: str, rest: tuple[str, ...], value: Node, trail: Trail) -> Node:
    items = list(node.value)
    if not key.isdecimal() or not key.isascii() or len(key) > 6 or int(key) >= len(items):
        raise KeyError(f"'{dotted(trail)}' is a list of {len(items)}: '{key[:40]}' is none of its indices from 0")
    index = int(key)
    items[index] = (
        _put(items[index], rest, value, (*trail, index)) if rest else merge(items[index], value, (*trail, index))
    )
    return Node(items, node.where)
