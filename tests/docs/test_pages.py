"""What the pages say in code is right: recipes pass the checker, Python runs, paths exist, tables are true."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from limbeck import registry
from limbeck.recipe import load_recipe

from .conftest import EXAMPLES, PAGES, ROOT, all_blocks, blocks, name_of

BASE: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"name": "cnn"},
    "student": {"name": "cnn"},
    "method": {"name": "kd"},
}
TREES = [b for b in all_blocks("yaml") if not b.title]
CELL = re.compile(r"^\| [^|]+ \| `(\{name: [^`]+\})` \|$", re.MULTILINE)
MENTIONED = re.compile(r"`((?:tests|src|docs|recipes|evidence)/[\w./]+\.\w+)`")


@pytest.mark.parametrize("block", TREES, ids=lambda b: f"{name_of(b.page)}: {b.text.splitlines()[0]}")
def test_recipes_and_their_fragments_are_valid(block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tree = yaml.safe_load(block.text)
    base = dict(BASE)
    if "teachers" in tree:
        base |= {"method": {"name": "supervised"}}
        del base["teacher"]
    _check({**base, **tree}, tmp_path)


def test_the_data_of_the_table_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cells = CELL.findall((ROOT / "docs" / "bring-your-own.md").read_text("utf8"))
    assert len(cells) >= 8
    for cell in cells:
        _check({**BASE, "data": yaml.safe_load(cell)}, tmp_path)


def _check(tree: dict[str, Any], folder: Path) -> None:
    """Load the recipe, with an empty file wherever it names a path."""
    for path in _paths(tree):
        (folder / path).touch()
    load_recipe(tree, folder=folder)


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (v for k, v in value.items() if k in ("path", "prompt_file") and isinstance(v, str))
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _paths(child)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    torch.save(net.state_dict(), "teacher.pt")
    heads = {"hs": torch.randn(60, 4, requires_grad=True), "ht": torch.randn(60, 5)}
    heads |= {"ws": torch.randn(9, 4, requires_grad=True), "wt": torch.randn(9, 5)}
    names = {**heads, "x": torch.randn(60, 6), "y": torch.arange(60) % 3, "big": nn.Linear(6, 3), "small": net}
    for block in blocks(page, "python"):
        if not block.title:
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_mentioned_exist(page: Path) -> None:
    text = page.read_text("utf8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        made = "parts/" in target  # pages that the build adds; its own strictness covers them
        assert made or (page.parent / target).exists(), target
    for path in MENTIONED.findall(text):
        assert (ROOT / path).exists(), path


def test_the_readme_names_no_method_that_is_not_there() -> None:
    table = re.search(
        r"<!-- generated: families -->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text("utf8"), re.DOTALL
    )
    assert table, "the README has no table of families"
    named = set(re.findall(r"`(\w+)`", table[1]))
    assert named
    assert named <= set(registry.names("method")), "run: python docs/generate.py"


def test_every_part_that_can_be_named_is_documented() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT / "docs"))
    for kind in generate.KINDS:
        page = generate.parts_page(kind)
        for part in [p for p in registry.parts(kind) if p.module.startswith("limbeck.") and p.family != "user"]:
            assert f"{{ #{part.name} }}" in page
            assert part.doc, f"{kind} {part.name} has no docstring"
