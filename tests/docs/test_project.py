"""What the project says of itself in its configuration agrees with the source tree."""

from __future__ import annotations

import tomllib

import yaml

import limbeck

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
FAMILIES = sorted(p.parent.name for p in (ROOT / "src" / "limbeck").glob("*/methods"))


def test_every_recipe_folder_is_installed_with_the_wheel() -> None:
    shared = PROJECT["tool"]["setuptools"]["data-files"]
    for room in ("recipes", "evidence"):
        for folder in {p.parent.relative_to(ROOT).as_posix() for p in (ROOT / room).rglob("*.*")}:
            assert shared.get(f"share/limbeck/{folder}"), f"pyproject.toml: data-files lack {folder}"


def test_every_family_is_in_the_import_contracts() -> None:
    contracts = {c["id"]: c for c in PROJECT["tool"]["importlinter"]["contracts"]}
    modules = [f"limbeck.{family}" for family in FAMILIES]
    assert contracts["families"]["modules"] == modules
    assert contracts["shared"]["forbidden_modules"] == modules
    assert set(modules) <= set(contracts["engine"]["source_modules"])


def test_every_module_is_in_the_import_contracts() -> None:
    contracts = {c["id"]: c for c in PROJECT["tool"]["importlinter"]["contracts"]}
    known = {*contracts["families"]["modules"], *contracts["shared"]["source_modules"]}
    package = ROOT / "src" / "limbeck"
    there = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert {f"limbeck.{name}" for name in there - {"__init__"}} == known


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert limbeck.__version__ == PROJECT["project"]["version"] == citation["version"]
    assert f"## {limbeck.__version__}\n" in (ROOT / "CHANGELOG.md").read_text("utf8")
