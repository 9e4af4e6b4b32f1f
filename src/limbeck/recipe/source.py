"""YAML (or mappings) as trees in which every value knows the file and line it was written on.

The words of YAML 1.1 that surprise are not used: ``2e-3`` is a number, ``on``, ``off``, ``yes`` and ``no`` are text,
and so are dates and ``1:30``. Nothing but plain values is read: no tags, no objects.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from limbeck.recipe.mistakes import Mistake, did_you_mean
from limbeck.registry import Block, nearest

Trail = tuple[str | int, ...]
"""Where a value is in the tree: the keys and indices that lead to it."""

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
MAX_DEPTH = 40
MAX_BRACKETS = 400
"""Bounds of a recipe, so that a hostile one (aliases of aliases) ends in a message and not in swapping."""
SHALLOW = 8_000
"""Characters of a text that cannot nest deep enough to exhaust the stack of a parser that does not look."""

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Where:
    """A file (as shown to the user) and line; ``folder`` is what relative paths written there are relative to."""

    file: str
    line: int = 0
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


DEFAULT = Where("default")


@dataclass(frozen=True)
class Node:
    """A value of the tree: a dict of nodes by key, a list of nodes, or a str, int, float, bool or None."""

    value: Any
    where: Where

    @property
    def is_map(self) -> bool:
        """Whether it is a map of keys."""
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {k: v.plain() for k, v in self.value.items()}
        return [v.plain() for v in self.value] if isinstance(self.value, list) else self.value

    def get(self, key: str) -> Node | None:
        """The value of a key, or None where this is no map, lacks the key or has null there."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return found if found is not None and found.value is not None else None

    def walk(self, trail: Trail = ()) -> Iterator[tuple[Trail, Node]]:
        """Every node below and including this one, with its trail."""
        yield trail, self
        inside = self.value.items() if isinstance(self.value, dict) else enumerate(self.value) if self.is_list else ()
        for key, child in inside:
            yield from child.walk((*trail, key))

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.value, list)


class UnreadableError(Exception):
    """A source that is no tree at all. Carries the one mistake that says why."""

    def __init__(self, where: Where, message: str, hint: str = "", path: str = "") -> None:
        self.mistake = Mistake(where.file, where.line, path, message, hint)
        super().__init__(str(self.mistake))


def read_file(path: Path, mistakes: list[Mistake]) -> Node:
    """The map in a YAML file.

    Raises:
        UnreadableError: no such file, not UTF-8, not YAML, or not a map.
    """
    where = Where(shown(path), folder=path.parent)
    root = parse(_text(path, where), where, mistakes)
    if not root.is_map:
        what = "is empty" if root.value is None else "holds no map of keys"
        raise UnreadableError(Where(where.file, 1), f"the file {what}: a recipe begins with lines like 'title: ...'")
    return root


def shown(path: Path) -> str:
    """A path as messages show it: relative to the working directory where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _text(path: Path, where: Where) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableError(where, "there is no such file", _near_file(path)) from None
    except IsADirectoryError:
        raise UnreadableError(where, "is a folder, not a recipe file") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(where, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise UnreadableError(where, f"is larger than {MAX_BYTES} bytes: this is not a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UnreadableError(Where(where.file, line), "is not UTF-8 text: save it as UTF-8") from None


def _near_file(path: Path) -> str:
    try:
        beside = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        return ""
    found = nearest(path.name, beside)
    return did_you_mean(shown(path.parent / found)) if found else ""


# ---------------------------------------------------------------------------------------------------------------------
# YAML


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's, ten times as quick; its errors say less, it may not be there, and it trusts a text not to be deep."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


_DIGITS = "0123456789"
_PLAIN_WORDS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|[0-9][0-9_]*)$", list("-+" + _DIGITS)),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+." + _DIGITS),
    ),
    ("merge", r"^<<$", ["<"]),
)
for _word, _pattern, _first in _PLAIN_WORDS:
    _Loader.add_implicit_resolver(_TAG + _word, re.compile(_pattern), _first)


def parse(text: str, where: Where, mistakes: list[Mistake], *, fixed: bool = False) -> Node:
    """The tree of a YAML text. Duplicate keys and the like are appended to ``mistakes``.

    Args:
        text: YAML.
        where: the file that is named; the line is each value's own unless ``fixed``.
        mistakes: takes what is wrong but does not stop the reading.
        fixed: whether every value is at ``where`` itself (one given on the command line).

    Raises:
        UnreadableError: the text is not YAML.
    """
    if _open_brackets(text) > MAX_BRACKETS:
        raise UnreadableError(where, "is nested too deeply")
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = where.line if fixed or mark is None else mark.line + 1
        raise UnreadableError(Where(where.file, line), _explain(error, text)) from None
    except yaml.reader.ReaderError as error:
        line = where.line if fixed else text[: error.position].count("\n") + 1
        raise UnreadableError(Where(where.file, line), "has a character that YAML does not allow") from None
    except RecursionError:
        raise UnreadableError(where, "is nested too deeply") from None
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise UnreadableError(where, f"is not YAML: {error}") from None
    if node is None:
        return Node(None, where)
    return _Reader(where, mistakes, fixed).root(node)


def _open_brackets(text: str) -> int:
    """The most brackets that are open at once, quoted ones too: a parser's time grows with their square."""
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text))
    return max(depths, default=0)


def _compose(text: str) -> yaml.Node | None:
    if len(text) <= SHALLOW:
        with suppress(yaml.YAMLError):  # said better below
            return _composed(_FastLoader(text))
    return _composed(_Loader(text))


def _composed(loader: Any) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    problem = str(error.problem or error.context or error)
    lines = text.splitlines()
    before = lines[mark.line][: mark.column + 1] if mark and mark.line < len(lines) else ""
    if "\\t" in problem or (before.strip() == "" and "\t" in before):
        return "a tab is used for indentation: use spaces"
    if "single document" in str(error.context):
        return "holds more than one YAML document: a recipe is one"
    return f"is not YAML: {problem}"


@dataclass
class _Reader:
    """Turns composed YAML nodes into ours."""

    where: Where
    mistakes: list[Mistake]
    fixed: bool
    count: int = 0
    open: set[int] = field(default_factory=set)

    def root(self, node: yaml.Node) -> Node:
        return self.read(node, self.at(node), ())

    def at(self, node: yaml.Node) -> Where:
        return self.where if self.fixed else Where(self.where.file, node.start_mark.line + 1, self.where.folder)

    def wrong(self, where: Where, trail: Trail, message: str) -> None:
        self.mistakes.append(Mistake(where.file, where.line, dotted(trail), message))

    def read(self, node: yaml.Node, where: Where, trail: Trail) -> Node:
        self.count += 1
        if self.count > MAX_VALUES:
            raise UnreadableError(where, f"has more than {MAX_VALUES} values (aliases count each time)")
        if len(trail) > MAX_DEPTH:
            raise UnreadableError(where, f"is nested more than {MAX_DEPTH} levels deep")
        if id(node) in self.open:
            raise UnreadableError(where, "has an alias that contains itself")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self.map(node, trail), where)
            if isinstance(node, yaml.SequenceNode):
                return Node([self.read(n, self.at(n), (*trail, i)) for i, n in enumerate(node.value)], where)
            return Node(self.scalar(node, where, trail), where)
        finally:
            self.open.discard(id(node))

    def map(self, node: yaml.MappingNode, trail: Trail) -> dict[str, Node]:
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key, value in node.value:
            where = self.at(key)
            if not isinstance(key, yaml.ScalarNode):
                self.wrong(where, trail, "a key must be a word, not a list or a map")
            elif key.tag == _TAG + "merge":
                inherited.update(self.merged(value, where, trail))
            elif key.value in own:
                self.wrong(where, (*trail, key.value), f"the key '{key.value}' is given twice")
            else:
                own[key.value] = self.read(value, where, (*trail, key.value))
        return {**inherited, **own}

    def merged(self, value: yaml.Node, where: Where, trail: Trail) -> dict[str, Node]:
        read = self.read(value, where, (*trail, "<<"))
        maps = read.value if read.is_list else [read]
        if not all(m.is_map for m in maps):
            self.wrong(where, (*trail, "<<"), "must be a map or a list of maps")
            return {}
        return {k: v for m in reversed(maps) for k, v in m.value.items()}

    def scalar(self, node: yaml.Node, where: Where, trail: Trail) -> Any:
        tag, text = str(node.tag).removeprefix(_TAG), str(node.value)
        try:
            if tag == "int":
                return int(text.replace("_", ""), 0 if re.match(r"[-+]?0[xo]", text) else 10)
            if tag == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "null":
                return None
            if tag in ("str", "merge"):
                text.encode("utf8")
                return text
            self.wrong(where, trail, f"the tag {node.tag} is not allowed: a recipe holds plain values")
        except (ValueError, KeyError):
            self.wrong(where, trail, f"is not a valid {tag}")
        return None


def read_scalar(text: str) -> Any:
    """A text as YAML would read it as a plain value: a number, true, false, null, or the text itself."""
    node = yaml.ScalarNode(str(_Loader("").resolve(yaml.ScalarNode, text.strip(), (True, False))), text.strip())
    complaints: list[Mistake] = []
    value = _Reader(DEFAULT, complaints, True).scalar(node, DEFAULT, ())
    return text if complaints or isinstance(value, str) else value


# ---------------------------------------------------------------------------------------------------------------------
# Mappings


def from_plain(value: Any, where: Where, mistakes: list[Mistake], trail: Trail = ()) -> Node:
    """The tree of a plain Python value (mappings, sequences, scalars, paths and blocks).

    Raises:
        UnreadableError: it is nested too deeply (it may contain itself).
    """
    if len(trail) > MAX_DEPTH:
        raise UnreadableError(where, f"is nested more than {MAX_DEPTH} levels deep", path=dotted(trail[:3]))
    if isinstance(value, Block):
        return from_plain({"name": value.name, **value.args}, where, mistakes, trail)
    if isinstance(value, Mapping):
        return Node({str(k): from_plain(v, where, mistakes, (*trail, str(k))) for k, v in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([from_plain(v, where, mistakes, (*trail, i)) for i, v in enumerate(value)], where)
    try:
        return Node(_scalar(value), where)
    except TypeError:
        message = f"a {type(value).__name__} is not a plain value: use numbers, text, true/false, lists and maps"
    except UnicodeEncodeError:
        message = "is not valid text"
    mistakes.append(Mistake(where.file, where.line, dotted(trail), message))
    return Node(None, where)


def _scalar(value: Any) -> Any:
    """A scalar as a built-in one (NumPy's numbers too)."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Path | str):
        str(value).encode("utf8")
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(type(value))


def dotted(trail: Trail) -> str:
    """A trail as text: ``method.terms.0.weight``."""
    return ".".join(map(str, trail))
