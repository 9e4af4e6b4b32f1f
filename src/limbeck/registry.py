"""Names of parts, found by convention and read without importing them.

A *part* is anything a recipe can name: a method, a model, a data source, a loss, a metric, an optimizer, a schedule.
It is a function or class marked ``@register("<kind>")`` in a file that its kind points to: for the kind ``model``
every ``models.py`` and every file of a ``models/`` folder of the package, of a family, or (``models.py``) of a folder
in it (likewise ``losses``, ``metrics``, ...).
Methods take their name from their file, everything else from the function. No list needs an edit.

A part's signature is its schema. It is read from the source with :mod:`ast`, so that a recipe is checked without
importing torch. Keyword-only arguments are the recipe's; positional ones are handed in by the library. An argument
that the recipe leaves out is filled from what the library *offers* under that name (``classes`` from the data, say).

Third parties name their parts with a dotted path (``name: mylab.methods:MyKD``) or with an entry point of the group
``limbeck.<kind>``.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from limbeck.errors import UserError

T = TypeVar("T")

ROOT = Path(__file__).parent
PLURALS = {"data": "data", "loss": "losses"}
REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
"""Default of a parameter that has none."""

_LIVE: dict[tuple[str, str], Any] = {}
_NAMED: set[str] = set()


class UnknownNameError(LookupError):
    """A recipe names a part that does not exist. ``hint`` is the nearest name that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.hint = nearest(name, known)
        says = f"; did you mean '{self.hint}'?" if self.hint else ""
        super().__init__(f"no {kind} is called '{name}'{says}")


class PartError(UserError):
    """A part cannot be loaded or built; the message says which and why."""


@dataclass(frozen=True)
class Block:
    """``name:`` and the keyword arguments of what it names. A parameter that nests a part is a ``ModelBlock`` etc."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """The block as plain maps and lists, as a recipe spells it."""
        return {"name": self.name, **{k: _plain(v) for k, v in self.args.items()}}


@dataclass(frozen=True)
class Kind:
    """Marks an annotation: the value is a block that names a part of this kind."""

    name: str


ModelBlock = Annotated[Block, Kind("model")]
DataBlock = Annotated[Block, Kind("data")]
LossBlock = Annotated[Block, Kind("loss")]
MethodBlock = Annotated[Block, Kind("method")]
TransformBlock = Annotated[Block, Kind("transform")]
ProjectorBlock = Annotated[Block, Kind("projector")]
OptimizerBlock = Annotated[Block, Kind("optimizer")]
ScheduleBlock = Annotated[Block, Kind("schedule")]


@dataclass(frozen=True)
class Param:
    """One argument of a part that a recipe may set."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    source: str = ""

    @property
    def required(self) -> bool:
        """Whether neither the signature nor a default gives a value."""
        return self.default is REQUIRED


COMMON: dict[str, tuple[Param, ...]] = {
    "loss": (
        Param("weight", float, 1.0, "float"),
        Param("student", str | None, None, "str | None"),
        Param("teacher", str | None, None, "str | None"),
        Param("projector", ProjectorBlock | None, None, "ProjectorBlock | None"),
    )
}
"""Arguments that every part of a kind has in a recipe beside its own: how a loss is wired by ``compose``."""


@dataclass(frozen=True)
class Part:
    """A named part: where it is and what it takes. :meth:`load` imports it.

    ``params`` are what a recipe may set, ``handed`` the names of what the library passes by position, ``open`` says
    that any further argument is taken, ``facts`` are literals known without importing.
    """

    kind: str
    name: str
    family: str
    module: str
    qualname: str
    params: tuple[Param, ...] = ()
    handed: tuple[str, ...] = ()
    open: bool = False
    doc: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0

    def param(self, name: str) -> Param | None:
        """The parameter of that name, or None."""
        return next((p for p in self.params if p.name == name), None)

    def load(self) -> Any:
        """Import the part's module and return the function or class."""
        if (self.kind, self.name) in _LIVE:
            return _LIVE[self.kind, self.name]
        target: Any = importlib.import_module(self.module)
        for attribute in self.qualname.split("."):
            target = getattr(target, attribute)
        return target


def register(kind: str, name: str | None = None, **facts: Any) -> Callable[[T], T]:
    """Mark a function or class as a part of ``kind``.

    Args:
        kind: method, model, data, loss, metric, optimizer, schedule, transform, projector or stage.
        name: the recipe's word for it; by default the function's name (for methods the file's).
        **facts: literals that must be known without importing the part, e.g. ``gives={"logits"}`` of a model.
    """

    def mark(target: T) -> T:
        own = name or _default_name(kind, getattr(target, "__name__", ""), getattr(target, "__module__", ""))
        target.__limbeck__ = {"kind": kind, "name": own, **facts}  # type: ignore[attr-defined]
        if not getattr(target, "__module__", "").startswith("limbeck."):
            _LIVE[kind, own] = target
        return target

    return mark


def find(kind: str, name: str) -> Part:
    """The part of that kind and name (a registered name, an entry point, or ``package.module:object``).

    Raises:
        UnknownNameError: there is none; carries the nearest name.
        PartError: a dotted path that cannot be imported.
    """
    if (kind, name) in _LIVE:
        return _from_object(kind, name, _LIVE[kind, name])
    if kind == "method" and name.replace("-", "_") in _method_files():
        return _method(name.replace("-", "_"))
    if ":" in name:
        return _from_path(kind, name)
    built_in = _built_in(kind, name)
    if built_in is not None:
        return built_in
    for entry in _entry_points(kind):
        if entry.name == name:
            return _from_object(kind, name, entry.load())
    raise UnknownNameError(kind, name, names(kind))


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    built_in = _method_files() if kind == "method" else _index(kind)
    live = {n for k, n in _LIVE if k == kind}
    return sorted({*built_in, *live, *(e.name for e in _entry_points(kind))})


def parts(kind: str) -> list[Part]:
    """All parts of a kind, sorted by name."""
    return [find(kind, n) for n in names(kind)]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, if one is like it at all."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.55)
    return close[0] if close else None


def build(kind: str, block: Block, *handed: Any, offers: Mapping[str, Any] | None = None) -> Any:
    """Build the part that a block names.

    Args:
        kind: the kind of part.
        block: its name and arguments.
        *handed: the positional arguments that this kind is given by the library.
        offers: values that fill arguments the recipe left out, by name.

    Raises:
        PartError: an argument has no value, or the part itself refused its arguments (its message is kept).
    """
    whole = complete(kind, block, offers)
    target = find(kind, block.name).load()
    try:
        inspect.signature(target).bind(*handed, **whole.args)
    except TypeError as error:
        raise PartError(f"{kind} '{block.name}': {error}") from error
    return target(*handed, **whole.args)


def complete(kind: str, block: Block, offers: Mapping[str, Any] | None = None) -> Block:
    """The block with the arguments that the recipe left out filled from what is offered.

    Raises:
        PartError: an argument has no value.
    """
    part = find(kind, block.name)
    arguments = dict(block.args)
    for p in part.params:
        if p.name not in arguments and offers is not None and offers.get(p.name) is not None:
            arguments[p.name] = offers[p.name]
    missing = [p.name for p in part.params if p.required and p.name not in arguments]
    if missing:
        raise PartError(f"{kind} '{block.name}' needs {', '.join(missing)}: give it in the recipe")
    return Block(block.name, arguments)


def named_paths() -> frozenset[str]:
    """The dotted paths that this process has imported a part from; a file may name these again, and no others."""
    return frozenset(_NAMED)


def clear() -> None:
    """Forget what was read (tests and notebooks that add files while running)."""
    for cached in (_files, _text, _index, _built_in, _method_files, _method, _scan, _tree, _installed, _entry_points):
        cached.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# Reading parts from source


def _default_name(kind: str, function: str, module: str) -> str:
    return module.rsplit(".", 1)[-1] if kind == "method" and module.startswith("limbeck.") else function


@functools.cache
def _files(kind: str) -> tuple[Path, ...]:
    plural = PLURALS.get(kind, kind + "s")
    found = [*ROOT.glob(f"{plural}.py"), *ROOT.glob(f"*/{plural}.py")]
    found += [*ROOT.glob(f"{plural}/*.py"), *ROOT.glob(f"*/{plural}/*.py"), *ROOT.glob(f"*/*/{plural}.py")]
    return tuple(sorted(f for f in found if not f.name.startswith("_")))


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf8")


def _module_of(path: Path) -> str:
    return ".".join(("limbeck", *path.relative_to(ROOT).with_suffix("").parts))


def _family_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first if (ROOT / first / "methods").is_dir() else "general"


@functools.cache
def _method_files() -> dict[str, Path]:
    return {p.stem: p for p in _files("method")}


@functools.cache
def _method(name: str) -> Part:
    found = _scan(_method_files()[name], "method")
    if len(found) != 1:
        raise PartError(f"{_method_files()[name]} must register exactly one method, it registers {len(found)}")
    return found[0]


@functools.cache
def _index(kind: str) -> dict[str, Part]:
    if kind == "method":
        return {name: _method(name) for name in _method_files()}
    return {part.name: part for path in _files(kind) for part in _scan(path, kind)}


@functools.cache
def _built_in(kind: str, name: str) -> Part | None:
    """The part of that name. Only files that mention it are parsed: checking a recipe need not read every part."""
    found = [p for path in _files(kind) if name in _text(path) for p in _scan(path, kind) if p.name == name]
    return found[-1] if found else None


@functools.cache
def _installed() -> Any:
    from importlib.metadata import entry_points

    return entry_points()


@functools.cache
def _entry_points(kind: str) -> tuple[Any, ...]:
    return tuple(_installed().select(group=f"limbeck.{kind}"))


@functools.cache
def _scan(path: Path, kind: str) -> tuple[Part, ...]:
    text = _text(path)
    if "@register(" not in text:
        return ()
    found = []
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register":
                    part = _read(path, node, call)
                    if part.kind == kind:
                        found.append(part)
    return tuple(found)


def _read(path: Path, node: ast.FunctionDef | ast.ClassDef, call: ast.Call) -> Part:
    said = [ast.literal_eval(a) for a in call.args]
    facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    named = facts.pop("name", None) or (said[1] if len(said) > 1 else None)
    module = _module_of(path)
    init: ast.FunctionDef | None = node if isinstance(node, ast.FunctionDef) else None
    doc = ast.get_docstring(node) or ""
    inits = [init] if init else []
    if isinstance(node, ast.ClassDef):
        for own in _line(path, node):
            facts = {**_class_literals(own), **facts}
            made = next((n for n in own.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            if made is not None and (not inits or inits[-1].args.kwarg):
                inits.append(made)
                doc = doc if own is node else _with_arguments(doc, ast.get_docstring(own) or "")
    return Part(
        kind=said[0],
        name=named or _default_name(said[0], node.name, module),
        family=_family_of(path),
        module=module,
        qualname=node.name,
        params=(*_unlike(p for made in inits for p in _ast_params(made)), *COMMON.get(said[0], ())),
        handed=tuple(a.arg for a in inits[0].args.args if a.arg != "self") if inits else (),
        open=bool(inits and inits[-1].args.kwarg),
        doc=doc,
        facts=facts,
        line=node.lineno,
    )


def _line(path: Path, node: ast.ClassDef) -> list[ast.ClassDef]:
    """The class and those of the package that it inherits from, in the order that Python looks them up.

    The bare bases of parts are left out. A base that several share comes after all of them.
    """
    found = [node]
    for file, base in _bases(path, node):
        found += _line(file, base)
    last = {id(n): i for i, n in enumerate(found)}
    return [n for i, n in enumerate(found) if last[id(n)] == i]


def _bases(path: Path, node: ast.ClassDef) -> Iterable[tuple[Path, ast.ClassDef]]:
    """The classes that are named as bases, and the files that they are in."""
    tree = _tree(path)
    here = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    away = {
        a.asname or a.name: (n.module or "", a.name)
        for n in tree.body
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    }
    for base in (b.id for b in node.bases if isinstance(b, ast.Name)):
        if base in here:
            yield path, here[base]
        elif (
            base in away and away[base][0].startswith("limbeck.") and away[base] != ("limbeck.engine.method", "Method")
        ):
            module, name = away[base]
            file = ROOT.parent.joinpath(*module.split(".")).with_suffix(".py")
            if file.is_file():
                yield from ((file, n) for n in _tree(file).body if isinstance(n, ast.ClassDef) and n.name == name)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path))


def _unlike(params: Iterable[Param]) -> list[Param]:
    """The parameters, the first of each name: a class's own before those of its bases."""
    found: dict[str, Param] = {}
    for p in params:
        found.setdefault(p.name, p)
    return list(found.values())


def _with_arguments(doc: str, base: str) -> str:
    """A docstring with the arguments that a base explains added to its own."""
    explained = base.partition("Args:\n")[2].partition("\n\n")[0].rstrip()
    if not explained:
        return doc
    own, found, rest = doc.partition("Args:\n")
    if not found:
        return f"{doc.rstrip()}\n\nArgs:\n{explained}\n"
    mine, _, after = rest.partition("\n\n")
    return f"{own}Args:\n{mine.rstrip()}\n{explained}" + (f"\n\n{after}" if after else "")


def _class_literals(node: ast.ClassDef) -> dict[str, Any]:
    literals = {}
    for item in node.body:
        target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and item.value is not None:
            try:
                literals[target.id] = ast.literal_eval(item.value)
            except ValueError:
                continue
    return literals


def _ast_params(init: ast.FunctionDef) -> Iterable[Param]:
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        source = ast.unparse(argument.annotation) if argument.annotation else "Any"
        value = REQUIRED if default is None else _literal(default)
        yield Param(argument.arg, _resolve(source), value, source)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _namespace() -> dict[str, Any]:
    return {
        **{n: getattr(typing, n) for n in ("Any", "Optional", "Union")},
        "Literal": Literal,
        "Annotated": Annotated,
        "Path": Path,
        "Mapping": Mapping,
        "Sequence": typing.Sequence,
        "Block": Block,
        **{n: v for n, v in globals().items() if n.endswith("Block")},
    }


def _resolve(source: str) -> Any:
    """The type an annotation names, or Any when it needs an import to be understood."""
    try:
        return eval(source, _namespace())
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


# ---------------------------------------------------------------------------------------------------------------------
# Parts given as objects or dotted paths


def _from_path(kind: str, name: str) -> Part:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        target: Any = importlib.import_module(module_name)
        for piece in attribute.split("."):
            target = getattr(target, piece)
    except ImportError as error:
        raise PartError(f"cannot import '{module_name}' for {kind} '{name}': {error}") from error
    except AttributeError as error:
        known = [n for n in vars(sys.modules[module_name]) if not n.startswith("_")]
        raise UnknownNameError(kind, attribute, known) from error
    _NAMED.add(name)
    return _from_object(kind, name, target)


def _from_object(kind: str, name: str, target: Any) -> Part:
    facts = {k: v for k, v in getattr(target, "__limbeck__", {}).items() if k not in ("kind", "name")}
    if inspect.isclass(target):
        said = {k: getattr(target, k, None) for k in ("needs", "controls", "data_free")}
        facts = {**{k: v for k, v in said.items() if v is not None}, **facts}
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise PartError(f"{kind} '{name}' is not something that can be called: {error}") from error
    registered = bool(getattr(target, "__limbeck__", None))
    params, is_open = [], False
    for p in _signature_of(target, signature):
        is_open |= p.kind is p.VAR_KEYWORD
        if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and not registered):
            source = p.annotation if isinstance(p.annotation, str) else ""
            annotation = _resolve(source) if source else (Any if p.annotation is p.empty else p.annotation)
            default = REQUIRED if p.default is p.empty else p.default
            params.append(Param(p.name, annotation, default, source or inspect.formatannotation(annotation)))
    return Part(
        kind=kind,
        name=name,
        family="user",
        module=getattr(target, "__module__", ""),
        qualname=getattr(target, "__qualname__", name),
        params=(*params, *COMMON.get(kind, ())),
        handed=tuple(p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD),
        open=is_open,
        doc=inspect.getdoc(target) or "",
        facts=facts,
    )


def _signature_of(target: Any, signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters of a callable; where a class passes ``**rest`` to the class above, that one's as well."""
    found = dict(signature.parameters)
    above = list(target.__mro__[1:-1]) if inspect.isclass(target) else []
    while above and (rest := next((p for p in found.values() if p.kind is p.VAR_KEYWORD), None)):
        base = above.pop(0)
        if "__init__" in vars(base):
            del found[rest.name]
            found |= {k: p for k, p in inspect.signature(base).parameters.items() if k not in found}
    return list(found.values())


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return value.tree()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
