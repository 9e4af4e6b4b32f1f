"""The size and the dress of the source: reported as a list, so that one run shows everything that is wrong."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator

from toolkit.benches import ROOT

SOURCE = ROOT / "src" / "limbeck"
FILE, FUNCTION, ANNOTATED = 600, 100, 0.9
Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Text and syntax tree of every module of the package."""
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf8") for p in sorted(SOURCE.rglob("*.py"))}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lines(function: Function) -> int:
    """Lines without the docstring: words that explain are not what makes a function long."""
    assert function.end_lineno is not None
    first = function.body[0]
    says = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    doc = (first.end_lineno or 0) - first.lineno + 1 if says else 0
    return function.end_lineno - function.lineno + 1 - doc


def public(tree: ast.Module) -> Iterator[Function]:
    """Functions and methods that a user may call."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (f for f in node.body if isinstance(f, Function) and not f.name.startswith("_"))


def test_no_file_is_too_long() -> None:
    long = {name: n for name, (text, _) in modules().items() if (n := len(text.splitlines())) > FILE}
    assert not long


def test_no_function_is_too_long_and_most_are_short() -> None:
    sizes = {f"{m}:{f.lineno} {f.name}": lines(f) for m, (_, tree) in modules().items() for f in functions(tree)}
    assert not {name: n for name, n in sizes.items() if n > FUNCTION}
    middle = sorted(sizes.values())[len(sizes) // 2]
    assert middle <= 12, f"the median function has {middle} lines"


def test_public_functions_say_what_they_return() -> None:
    found = [(f"{m}:{f.lineno} {f.name}", f) for m, (_, tree) in modules().items() for f in public(tree)]
    bare = [name for name, f in found if f.returns is None]
    assert len(bare) <= (1 - ANNOTATED) * len(found), bare


def test_no_source_unpickles_or_runs_foreign_code() -> None:
    """Contract 12: the calls that execute what a file says do not occur."""
    forbidden = {"torch.load", "pickle.load", "pickle.loads", "joblib.load", "exec", "os.system", "yaml.load"}
    found = []
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                said = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
                if called in forbidden or said & {"allow_pickle", "trust_remote_code"}:
                    found.append(f"{name}:{node.lineno} {called}")
    assert not found
