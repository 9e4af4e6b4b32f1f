"""Every command that a text shows is one that works: it parses, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from limbeck import cli, gallery, registry
from limbeck.recipe import load_recipe

from .conftest import PAGES, ROOT, all_blocks, blocks, name_of

INLINE = re.compile(r"`(limbeck [^`\n]+(?:\n[^`\n]+)?)`")
MADE = re.compile(r"limbeck init (\S+)")


def commands(page: Path) -> list[tuple[Path, list[str]]]:
    """The ``limbeck`` command lines of a page's shell blocks: the folder that each runs in, and its arguments."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            folder = ROOT
            if words[:1] == ["cd"]:
                folder, words = ROOT / words[1], words[3:]
            if words[:1] == ["limbeck"]:
                found.append((folder, words[1:]))
    return found


def inline(page: Path) -> list[list[str]]:
    """The ``limbeck`` command lines in the prose of a page."""
    said = [shlex.split(" ".join(m[1].split()).split(" > ")[0]) for m in INLINE.finditer(page.read_text("utf8"))]
    return [words[1:] for words in said]


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_commands_parse_and_name_what_exists(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = set(MADE.findall(page.read_text("utf8")))
    for folder, words in commands(page):
        monkeypatch.chdir(folder)
        parsed = cli.parser().parse_args(_expanded(words, folder))
        for recipe in [getattr(parsed, "recipe", None), *getattr(parsed, "recipes", [])]:
            if recipe and recipe not in made:
                load_recipe(gallery.recipe_file(recipe), overrides=parsed.set if hasattr(parsed, "set") else ())
        if hasattr(parsed, "method"):
            registry.find("method", parsed.method)
        if parsed.command is cli.show:
            gallery.describe(parsed.name)
        if parsed.command is cli.list_:
            assert gallery.part_rows(parsed.kind) if parsed.kind else gallery.rows(parsed.family)


def _expanded(words: list[str], folder: Path) -> list[str]:
    """The words with patterns of recipes replaced by what they match, as a shell does."""
    out: list[str] = []
    for word in words:
        found = sorted(str(p.relative_to(folder)) for p in folder.glob(word)) if word.startswith("recipes/") else []
        out += found or [word]
    return out


@pytest.mark.parametrize("page", [p for p in PAGES if inline(p)], ids=name_of)
def test_commands_in_prose_exist(page: Path) -> None:
    for words in inline(page):
        if len(words) > 1:
            cli.parser().parse_args(words)
        else:
            with pytest.raises(SystemExit) as left:
                cli.parser().parse_args([*words, "--help"])
            assert left.value.code == 0


@pytest.mark.parametrize("block", all_blocks("console"), ids=lambda b: name_of(b.page))
def test_what_a_session_shows_is_what_is_said(block, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    command, _, expected = block.text.partition("\n")
    cli.main(shlex.split(command.removeprefix("$ limbeck ")))
    said = capsys.readouterr()
    assert said.out + said.err == expected


def test_documented_make_targets_exist() -> None:
    for block in all_blocks("bash"):
        for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
            assert target in targets(), f"{name_of(block.page)}: make {target}"
