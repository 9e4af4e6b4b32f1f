"""The gallery: what recipes, methods and parts there are, read without importing torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import registry
from limbeck.codehash import part_hash
from limbeck.errors import UserError
from limbeck.recipe.blocks import OFFERED
from limbeck.recipe.parts import method_named
from limbeck.recipe.source import UnreadableError, read_file
from limbeck.registry import Part, nearest

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

KINDS = ("method", "model", "data", "loss", "metric", "optimizer", "schedule", "transform", "projector", "stage")


def recipes_roots() -> list[Path]:
    """Folders of recipes: ``recipes`` in the working directory, then the shipped ones (checkout or installed)."""
    candidates = (
        Path("recipes"),
        Path(__file__).parents[2] / "recipes",
        Path(sys.prefix) / "share" / "limbeck" / "recipes",
    )
    return list({c.resolve(): c for c in reversed(candidates) if c.is_dir()}.values())[::-1]


def recipe_file(name: str | Path) -> Path:
    """A recipe's file from a path, or from a gallery name (``quickstart``, ``dkd``, ``vision/dkd``).

    Raises:
        UserError: there is neither; names the nearest gallery name.
    """
    path, known = Path(name), named_files()
    if path.exists() or path.suffix in (".yaml", ".yml") or not known:
        return path
    found = known.get(str(name)) or known.get(str(name).replace("-", "_"))
    if found is None:
        hint = nearest(str(name), known)
        says = f"; did you mean '{hint}'?" if hint else "; limbeck list shows it"
        raise UserError(f"there is no recipe file '{name}' and no recipe of that name in the gallery{says}")
    return found


def named_files() -> dict[str, Path]:
    """Every recipe file of the gallery under ``family/slug`` and under its slug alone; the user's own win."""
    named: dict[str, Path] = {}
    for root in reversed(recipes_roots()):
        files = sorted(root.rglob("*.yaml"))
        named |= {p.stem: p for p in files} | {p.relative_to(root).with_suffix("").as_posix(): p for p in files}
    return named


def rows(family: str | None = None) -> list[dict[str, Any]]:
    """One row per recipe of the gallery, and per method that has none yet.

    Raises:
        UserError: no such family.
    """
    recipes = _recipe_rows()
    shown = {row["slug"] for row in recipes}
    seen, unique = set(), []
    for row in [*recipes, *(row for row in _bare_method_rows() if row["slug"] not in shown)]:
        if (row["family"], row["slug"]) not in seen:
            seen.add((row["family"], row["slug"]))
            unique.append(row)
    families = sorted({row["family"] for row in unique})
    if family is not None and family not in families:
        raise UserError(_no_such("family", family, families))
    return sorted((r for r in unique if family in (None, r["family"])), key=lambda r: (r["family"], r["slug"]))


def _recipe_rows() -> list[dict[str, Any]]:
    found = ((root, path) for root in recipes_roots() for path in sorted(root.rglob("*.yaml")))
    return [row for root, path in found if (row := _recipe_row(root, path)) is not None]


def _recipe_row(root: Path, path: Path) -> dict[str, Any] | None:
    """The row of a file, or None when it is no recipe of this library, or only there to be extended."""
    if path.parent.name == "benches":
        return None
    tree = _shallow(path)
    method = tree.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    try:
        part = registry.find("method", str(name))
    except (LookupError, UserError):
        return None
    return {
        "slug": path.stem,
        "family": path.relative_to(root).parts[0] if path.parent != root else part.family,
        "title": tree.get("title", ""),
        "arxiv": (tree.get("paper") or {}).get("arxiv"),
        "needs": _needs(part),
        "evidence": _state_of_file(path),
        "recipe": str(path),
    }


def _shallow(path: Path, depth: int = 8) -> dict[str, Any]:
    """The top keys of a recipe over those of what it extends: enough for a list, and quick."""
    try:
        tree = read_file(path, []).plain()
    except UnreadableError:
        return {}
    given = tree.get("extends") if depth else None
    bases = given if isinstance(given, list) else [given] if given else []
    under: dict[str, Any] = {}
    for base in bases:
        under |= _shallow(path.parent / str(base), depth - 1)
    return {**under, **tree}


def _row_of(slug: str) -> dict[str, Any] | None:
    """The row of the recipe of that name; None where there is none."""
    file = named_files().get(slug)
    roots = [root for root in recipes_roots() if file is not None and file.is_relative_to(root)]
    return _recipe_row(roots[0], file) if file is not None and roots else None


def _bare_method_rows() -> list[dict[str, Any]]:
    return [
        {
            "slug": part.name,
            "family": part.family,
            "title": part.doc.split("\n")[0],
            "arxiv": None,
            "needs": _needs(part),
            "evidence": "none",
            "recipe": None,
        }
        for part in registry.parts("method")
    ]


def part_rows(kind: str) -> list[dict[str, Any]]:
    """Name, family and first line of every part of a kind.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise UserError(_no_such("kind of part", kind, KINDS))
    return [{"name": p.name, "family": p.family, "about": p.doc.split("\n")[0]} for p in registry.parts(kind)]


def _needs(part: Part) -> dict[str, list[str]]:
    """What a part needs by role: signals of the teachers, for methods; metrics only say whom they compare with."""
    needs = part.facts.get("needs", {})
    return {k: sorted(v) for k, v in needs.items()} if isinstance(needs, Mapping) else {k: [] for k in sorted(needs)}


def _no_such(what: str, name: str, known: Sequence[str]) -> str:
    hint = nearest(name, known)
    return f"no {what} is called '{name}'; " + (f"did you mean '{hint}'?" if hint else f"there is {', '.join(known)}")


def describe(name: str) -> dict[str, Any]:
    """What a part is and takes: ``dkd``, or ``kind:name`` for parts other than methods."""
    kind, _, own = name.partition(":") if name.split(":")[0] in KINDS else ("method", "", name)
    try:
        part = registry.find(kind, own)
    except registry.UnknownNameError as error:
        raise UserError(str(error)) from error
    row = _row_of(part.name) if kind == "method" else None
    return {
        "kind": kind,
        "name": part.name,
        "family": part.family,
        "about": part.doc,
        "arguments": [
            {
                "name": p.name,
                "type": p.source,
                "default": None if p.required else p.default,
                "required": p.required and not (kind == "model" and p.name in OFFERED),
                "from_data": kind == "model" and p.name in OFFERED,
            }
            for p in part.params
        ],
        **({"gives": sorted(part.facts.get("gives", {"logits"}))} if kind == "model" else {}),
        "needs": _needs(part),
        **({"evidence": row["evidence"], "recipe": row["recipe"]} if row else {}),
    }


def text(facts: dict[str, Any]) -> str:
    """:func:`describe` for a terminal."""
    lines = [f"{facts['kind']} {facts['name']}  ({facts['family']})", "", facts["about"], "", "Arguments:"]
    lines += [f"  {_argument(a)}" for a in facts["arguments"]] or ["  none"]
    if "gives" in facts:
        lines.append(f"Gives: {', '.join(facts['gives'])}")
    for role, signals in facts["needs"].items():
        who = "every teacher" if role == "*" else role
        lines.append(f"Needs of {who}: {', '.join(signals)}" if signals else f"Needs a {who}")
    if facts.get("recipe"):
        lines += [f"Recipe: {facts['recipe']}", f"Evidence: {facts['evidence']}"]
    return "\n".join(lines)


def _argument(a: Mapping[str, Any]) -> str:
    if a["required"]:
        return f"{a['name']}: {a['type']}  (required)"
    default = "" if a["from_data"] and a["default"] is None else f" = {a['default']!r}"
    return f"{a['name']}: {a['type']}{default}" + ("  (from the data, where left out)" if a["from_data"] else "")


# ---------------------------------------------------------------------------------------------------------------------
# The ledger of evidence


def evidence_path(recipe: Recipe) -> Path:
    """Where the outcome of a recipe's proof is kept: ``evidence/<family>/<slug>.json`` beside ``recipes/``."""
    if recipe.path is None:
        raise UserError("only the claim of a recipe file can be recorded")
    return _ledger(recipe.path)


def _ledger(path: Path) -> Path:
    path = path.resolve()
    for parent in path.parents:
        if parent.name == "recipes":
            return parent.parent / "evidence" / path.relative_to(parent).with_suffix(".json")
    return path.parent / "evidence" / f"{path.stem}.json"


def sources_hash(recipe: Recipe) -> dict[str, str]:
    """What a record was measured at: the recipe's content, but for its words, and its methods' files."""
    own = recipe.method.name
    methods = {own, *(method_named(overrides, own) or own for overrides in recipe.arms.values())}
    parts = {name: registry.find("method", name) for name in sorted(methods)}
    return {"recipe": recipe.measured(), **{f"method {n}": part_hash(p) for n, p in parts.items()}}


def evidence_state(recipe: Recipe) -> str:
    """``holds``, ``fails``, ``stale`` (recipe or method changed since) or ``none``."""
    path = evidence_path(recipe)
    if not path.exists():
        return "none"
    try:
        record = json.loads(path.read_text(encoding="utf8"))
        fresh = record["hashes"] == sources_hash(recipe)
        return ("holds" if record["holds"] else "fails") if fresh else "stale"
    except (OSError, ValueError, KeyError, TypeError):
        return "stale"  # a damaged record says nothing


def _state_of_file(path: Path) -> str:
    if not _ledger(path).exists():
        return "none"
    from limbeck.recipe import load_recipe

    try:
        return evidence_state(load_recipe(path))
    except UserError:  # the recipe has mistakes since
        return "stale"
