"""The texts of the project, cut into what can be checked: fenced blocks, command lines, paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Fenced:
    """A fenced block of a page."""

    page: Path
    language: str
    title: str | None
    text: str


def blocks(page: Path, *languages: str) -> list[Fenced]:
    """The fenced blocks of a page in these languages."""
    found = [Fenced(page, m["language"], m["title"], m["text"]) for m in FENCE.finditer(page.read_text("utf8"))]
    return [block for block in found if block.language in languages]


def all_blocks(*languages: str) -> list[Fenced]:
    """The fenced blocks of every page."""
    return [block for page in PAGES for block in blocks(page, *languages)]


def name_of(page: Path) -> str:
    """A page's path as a test's name."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def in_examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in ``docs/examples``, as the pages say."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return EXAMPLES
