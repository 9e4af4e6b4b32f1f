"""Variants of a recipe: the phases of a run, its controls, the arms of a claim, and what an arm depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.codehash import code_of, toolkit_hash
from limbeck.recipe.parts import method_named
from limbeck.registry import Block, find

if TYPE_CHECKING:
    from limbeck.data.base import Data
    from limbeck.engine.teacher import Teacher
    from limbeck.recipe import Recipe

STUDENT = "student"


@dataclass(frozen=True)
class PhaseRecipe:
    """One phase: the recipe with the phase's changes, and which learners and parameters train."""

    title: str
    recipe: Recipe
    learners: tuple[str, ...] | None = None
    parameters: tuple[str, ...] | None = None
    start: str | Path | None = None


def phase_recipes(recipe: Recipe) -> list[PhaseRecipe]:
    """The recipe's phases in order; a recipe without them has a single one."""
    if not recipe.phases:
        return [PhaseRecipe("", recipe)]
    return [
        PhaseRecipe(
            phase.name,
            recipe.with_overrides({"phases": None, "claim": None, "controls": False, **phase.overrides}),
            phase.learners,
            phase.parameters,
            phase.start,
        )
        for phase in recipe.phases
    ]


def arm_recipe(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of an arm: with its overrides, and without claim and controls.

    An arm of another method keeps the phases (its student trains as long, from the same weights), but not what phases
    and ``train`` say of the method: its hyper-parameters are no words of the other's, nor are its learners' roles.
    Roles that are left out in this way, without a word of the overrides, are the arm's ``left_out``.
    """
    whole: dict[str, Any] = {"claim": None, "controls": False, **overrides}
    left_out: tuple[str, ...] = ()
    if method_named(overrides, recipe.method.name) != recipe.method.name:
        if recipe.phases and "phases" not in overrides:
            whole["phases"] = _student_phases(recipe) or None
        foreign = {role: None for role in recipe.train.learners if role != STUDENT}
        if foreign:
            train = dict(overrides.get("train") or {})
            own = train.get("learners") or {}
            whole["train"] = {**train, "learners": {**foreign, **own}}
            left_out = () if "learners" in train and not own else tuple(r for r in foreign if r not in own)
    return replace(recipe.with_overrides(whole), left_out=left_out)


def _student_phases(recipe: Recipe) -> list[dict[str, Any]]:
    """The phases in which the student trains, without their method; what labels alone teach there stays."""
    given = [dict(tree) for tree in recipe.tree["phases"]]
    kept: list[dict[str, Any]] = []
    for phase, tree in zip(recipe.phases, given, strict=True):
        if phase.learners is not None and STUDENT not in phase.learners:
            continue
        names = [p["name"] for p in kept]
        of_labels = method_named(phase.overrides) == "supervised"
        dropped = ("learners",) if of_labels else ("method", "learners")
        own = {k: v for k, v in tree.items() if k not in dropped}
        if isinstance(phase.start, str) and phase.start not in names:
            own.pop("from", None)
        kept.append({**own, "name": phase.name})
    return kept


def arm_key(recipe: Recipe, data: Mapping[str, Data], teachers: Mapping[str, Teacher], seed: int) -> str:
    """What a trained arm depends on, as a hash: blocks, data, teachers' weights, start weights, code and seed."""
    facts = {
        "recipe": recipe.fingerprint("student", "method", "train", "phases", "cache", "data"),
        "data": fingerprints(data, ("train", "val")),
        "teachers": {name: t.hash for name, t in teachers.items()},
        "files": [file_state(path) for path in start_files(recipe)],
        "code": code_of(recipe.tree, recipe.method.name),
        "toolkit": toolkit_hash(find("method", recipe.method.name).module),
        "seed": seed,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprints(data: Mapping[str, Data], splits: Sequence[str] = ("train", "val", "test")) -> dict[str, str]:
    """The content of the splits of every stream, by name."""
    found = {
        f"{name}.{split}": getattr(getattr(d, split), "fingerprint", "") for name, d in data.items() for split in splits
    }
    return {name: content for name, content in found.items() if content}


def start_files(recipe: Recipe) -> list[Path]:
    """Files and folders that hold the student's start weights."""
    given = [recipe.student.path, *_paths(recipe.student.block), *(p.start for p in recipe.phases)]
    return [path for path in given if isinstance(path, Path)]


def _paths(block: Block) -> list[Path]:
    """The values called ``path`` in a block and in the blocks inside it."""
    own = block.args.get("path")
    inside = [path for v in block.args.values() if isinstance(v, Block) for path in _paths(v)]
    return [own, *inside] if isinstance(own, Path) else inside


def teacher_files(recipe: Recipe) -> list[Path]:
    """Files and folders that hold the weights of teachers, and of the teachers of teachers."""
    found = []
    for role, teacher in recipe.teachers.items():
        if teacher.path is not None:
            found.append(teacher.path)
        elif teacher.taught:
            found += teacher_files(recipe.of_teacher(role))
    return found


def file_state(path: Path) -> list[Any]:
    """Names, sizes and times of the files at a path: enough to see that weights were replaced, and quick."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.exists()]
