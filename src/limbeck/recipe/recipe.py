"""A checked recipe, and how one is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.recipe.assemble import (
    Phase,
    StudentBlock,
    TeacherBlock,
    assemble,
    control_arms,
    teacher_node,
)
from limbeck.recipe.blocks import Checker
from limbeck.recipe.environment import Environment
from limbeck.recipe.fields import Cache, Claim, Train
from limbeck.recipe.layers import extended, merge, read_layers, spelled_out, with_settings
from limbeck.recipe.mistakes import Mistake, RecipeError
from limbeck.recipe.source import Node, Trail, UnreadableError, Where, dotted, from_plain
from limbeck.recipe.values import Row
from limbeck.registry import Block

DESCRIPTIVE = frozenset(("title", "notes", "paper", "claim", "licence", "slow", "extends"))
"""Keys that say nothing about what a run does."""
WORDS = frozenset(("title", "notes", "paper", "licence", "slow"))
"""Keys that say nothing about what a claim is measured by."""


@dataclass(frozen=True, repr=False)
class Recipe:
    """A recipe without mistakes.

    Attributes:
        title: what it does.
        slug: the stem of its file.
        path: of its file; None for one made from a mapping.
        tree: everything that it says, as plain maps and lists (references to the environment are kept as such).
        data: data blocks by stream; a single one is called ``data``; empty for data-free recipes.
        stream_batch: batch sizes of the streams that have their own.
        teachers: by role; a single one is called ``teacher``.
        arms: the claim's arms by name, each the overrides that make it (see :meth:`arm`).
        origin: where every value was written: ``recipes/dkd.yaml:12``, ``--set``, ``default``, ``overrides``.
        remarks: what is odd but no mistake.
        left_out: roles of which ``train.learners`` spoke before this became an arm of another method.
    """

    title: str
    slug: str
    path: Path | None
    tree: dict[str, Any]
    data: Mapping[str, Block]
    stream_batch: Mapping[str, int]
    teachers: Mapping[str, TeacherBlock]
    student: StudentBlock
    method: Block
    train: Train
    phases: Sequence[Phase] = ()
    evaluate: Sequence[Block] | None = None
    cache: Cache | None = None
    controls: bool | Mapping[str, Any] = True
    claim: Claim | None = None
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    export: Sequence[str] = ()
    stages: Sequence[Block] | None = None
    seed: int = 0
    slow: bool = False
    paper: Mapping[str, Any] | None = None
    notes: str | None = None
    licence: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    left_out: Sequence[str] = ()
    source: Source = field(kw_only=True)

    def __repr__(self) -> str:
        return f"Recipe({self.slug!r}, method={self.method.name!r})"

    def with_overrides(self, overrides: Mapping[str, Any]) -> Recipe:
        """The recipe with a tree laid on it, by the rules of ``extends`` (None removes a key), checked anew.

        Raises:
            RecipeError: the result has mistakes.
        """
        mistakes: list[Mistake] = []
        try:
            over = from_plain(self._unread(overrides), Where("overrides", folder=self.source.folder), mistakes)
        except UnreadableError as error:
            raise RecipeError([error.mistake]) from None
        if mistakes or not over.is_map:
            raise RecipeError(mistakes or [Mistake("overrides", 0, "", "must be a map of keys")])
        return self._again(merge(self.source.root, spelled_out(over)))

    def arm(self, name: str) -> Recipe:
        """The recipe of one arm of the claim."""
        return self.with_overrides({"claim": None, **self.arms[name]})

    def of_teacher(self, role: str) -> Recipe:
        """The recipe that trains a teacher: its model as the student, by its method, its ``train`` over the run's."""
        root = self.source.root
        return self._again(teacher_node(root, _teacher_node(root, role), self.teachers[role]))

    @property
    def control_arms(self) -> dict[str, Any]:
        """Overrides of the control arms by name: those that the recipe gives, or the method's own."""
        return control_arms(self.controls, self.method, self.student)

    def fingerprint(self, *paths: str) -> str:
        """SHA-256 (hex) of the subtrees at dotted paths, of the whole tree where none is given."""
        content = {path: _subtree(self.tree, path) for path in paths} if paths else self.tree
        text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf8")).hexdigest()

    def measured(self) -> str:
        """SHA-256 (hex) of what a claim's record depends on: the whole tree, but for words that change no number."""
        content = {key: value for key, value in self.tree.items() if key not in WORDS}
        if isinstance(claim := content.get("claim"), Mapping):
            content["claim"] = {key: value for key, value in claim.items() if key not in ("says", "because")}
        text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf8")).hexdigest()

    def plan(self) -> list[tuple[str, Any, str]]:
        """Every effective value of the run, defaults included, and where it came from."""
        rows = {row.trail: row for row in self.source.rows if row.trail[0] not in DESCRIPTIVE}
        return [(dotted(row.trail), row.value, str(row.where)) for row in rows.values()]

    def redact(self, text: str) -> str:
        """The text with everything that was read from the environment replaced by its reference."""
        return self.source.environment.redact(text)

    def _unread(self, value: Any) -> Any:
        """Overrides taken from built blocks carry what was read from the environment: put the references back."""
        if isinstance(value, Block):
            value = value.tree()
        if isinstance(value, Mapping):
            return {k: self._unread(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._unread(v) for v in value]
        return self.source.environment.secrets.get(value, value) if isinstance(value, str) else value

    def _again(self, root: Node) -> Recipe:
        place = Source(root, self.source.folder, self.path, self.source.environment)
        return build_recipe(place, self.slug, [], deep=False)


@dataclass(frozen=True)
class Source:
    """What a recipe was made from, kept so that it can be changed."""

    root: Node
    folder: Path
    path: Path | None
    environment: Environment
    rows: Sequence[Row] = ()


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    arms: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
) -> Recipe:
    """Read and check a recipe; nothing is built, loaded or written.

    Args:
        source: a YAML file, or the content of one.
        overrides: ``key.path=value`` settings, as ``--set`` takes them.
        arms: further arms by name, each a map of overrides; they are checked with the recipe's own.
        folder: what relative paths in a mapping are relative to; by default the working directory.

    Raises:
        RecipeError: with all mistakes at once.
    """
    environment = Environment()
    mistakes: list[Mistake] = []
    path = Path(source) if isinstance(source, str | Path) else None
    folder = folder or (path.parent.absolute() if path else Path.cwd())
    try:
        if isinstance(source, str | Path):
            root = read_layers(Path(source), environment, mistakes)
        else:
            root = _from_mapping(source, folder, environment, mistakes)
        further = from_plain(arms, Where("arms", folder=folder), mistakes) if arms else None
    except UnreadableError as error:
        raise RecipeError([*mistakes, error.mistake]) from None
    if further is not None and not further.is_map:
        mistakes.append(Mistake("arms", 0, "", "must be a map of overrides by name"))
        further = None
    root = with_settings(root, overrides, mistakes)
    return build_recipe(Source(root, folder, path, environment), _slug(path, root), mistakes, arms=further)


def build_recipe(
    source: Source, slug: str, mistakes: Sequence[Mistake], *, arms: Node | None = None, deep: bool = True
) -> Recipe:
    """The recipe of a merged tree.

    Raises:
        RecipeError: with ``mistakes`` and all that are found in the tree.
    """
    check = Checker(source.folder, source.environment, list(mistakes))
    made = assemble(source.root, check, arms=arms, deep=deep)
    if check.mistakes or made.student is None or made.method is None or made.train is None:
        raise RecipeError(check.mistakes)
    plain = {k: made.fields[k] for k in ("evaluate", "cache", "controls", "claim", "export", "stages", "seed", "slow")}
    paper = made.fields["paper"]
    return Recipe(
        title=made.fields["title"] or slug.replace("_", " "),
        slug=slug,
        path=source.path,
        tree=_pruned(source.root.plain(), check.dropped),
        data=made.data,
        stream_batch=made.stream_batch,
        teachers=made.teachers,
        student=made.student,
        method=made.method,
        train=made.train,
        phases=tuple(made.phases),
        arms=made.arms,
        **plain,
        paper={k: v for k, v in asdict(paper).items() if v is not None} if paper else None,
        notes=made.fields["notes"],
        licence=made.fields["licence"],
        origin=_origin(source.root, check.rows),
        remarks=tuple(check.remarks),
        source=replace(source, rows=tuple(check.rows)),
    )


def _from_mapping(given: Mapping[str, Any], folder: Path, environment: Environment, mistakes: list[Mistake]) -> Node:
    where = Where("recipe", folder=folder)
    root = from_plain(given, where, mistakes)
    if not root.is_map:
        raise UnreadableError(where, "must be a file or a map of keys")
    return extended(root, environment, mistakes)


def _slug(path: Path | None, root: Node) -> str:
    title = root.value.get("title") if path is None else None
    if path is not None:
        return path.stem
    text = title.value if title and isinstance(title.value, str) else ""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60] or "recipe"


def _teacher_node(root: Node, role: str) -> Node:
    single, several = root.get("teacher"), root.get("teachers")
    if single is not None:
        node = single
    else:
        assert several is not None
        node = several.value[int(role.removeprefix("teacher_"))] if several.is_list else several.value[role]
    return Node({"name": node}, node.where) if isinstance(node.value, str) else node


def _pruned(tree: dict[str, Any], dropped: Sequence[Trail]) -> dict[str, Any]:
    """The tree without the nulls that only say that a key is not given."""
    for trail in dropped:
        inside: Any = tree
        for key in trail[:-1]:
            inside = (
                inside.get(key) if isinstance(inside, dict) else inside[int(key)] if isinstance(inside, list) else None
            )
        if isinstance(inside, dict) and trail[-1] in inside and inside[str(trail[-1])] is None:
            del inside[str(trail[-1])]
    return tree


def _origin(root: Node, rows: Sequence[Row]) -> dict[str, str]:
    given = {dotted(trail): str(node.where) for trail, node in root.walk() if trail}
    return {dotted(row.trail): str(row.where) for row in rows} | given


def _subtree(tree: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(tree, list):
            tree = tree[int(key)] if key.isdecimal() and int(key) < len(tree) else None
        else:
            tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _canonical(value: Any) -> Any:
    """Equal settings as equal JSON: 1 and 1.0 are the same number."""
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
