"""What a recipe is made of, beside its train block: teachers, student, phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.recipe.annotations import Tree
from limbeck.recipe.fields import Train
from limbeck.registry import Block, find


@dataclass(frozen=True)
class TeacherBlock:
    """A teacher of a recipe.

    Attributes:
        block: the model; its name is ``auto`` where the folder at ``path`` decides.
        path: weights or a model's folder.
        train: what its own training changes in the run's ``train``, as the recipe spells it.
        method: how it is trained where it is not loaded.
        mode: eval, or batch_stats (normalisation uses the batch's statistics).
        licence: carried to the student's card.
        own_data: whether it is trained on other data than the run's, with labels of its own.
        taught: whether it has teachers itself.
        finetune: whether it is trained further from the weights that are loaded.
    """

    block: Block
    path: Path | None
    train: Mapping[str, Any]
    method: Block
    mode: str
    licence: str | None
    own_data: bool = False
    taught: bool = False
    finetune: bool = False

    @property
    def loaded(self) -> bool:
        """Whether its weights come from a file or the hub."""
        return self.path is not None or "path" in self.block.args or "hub" in self.block.args


@dataclass(frozen=True)
class StudentBlock:
    """The student of a recipe: its model, start weights, and patterns of parameters that do not train."""

    block: Block
    path: Path | None = None
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        name: as in the recipe, else ``phase_<index>``.
        overrides: what the phase changes in the recipe (``method``, ``data``, ``train``).
        learners: roles that train; None for all.
        parameters: patterns of the student's parameters that train; None for all.
        start: an earlier phase's name or a path whose weights it starts from; None goes on from the phase before.
    """

    name: str
    overrides: Mapping[str, Any]
    learners: tuple[str, ...] | None = None
    parameters: tuple[str, ...] | None = None
    start: str | Path | None = None


@dataclass
class Assembly:
    """What a tree says, as far as it could be read."""

    fields: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Block] = field(default_factory=dict)
    stream_batch: dict[str, int] = field(default_factory=dict)
    teachers: dict[str, TeacherBlock] = field(default_factory=dict)
    student: StudentBlock | None = None
    method: Block | None = None
    train: Train | None = None
    phases: list[Phase] = field(default_factory=list)
    arms: dict[str, Tree] = field(default_factory=dict)


def method_named(overrides: Mapping[str, Any], otherwise: str | None = None) -> str | None:
    """The method's name in overrides of a recipe, which may give a name or a block; ``otherwise`` where they do not."""
    method = overrides.get("method") or {}
    name: str | None = method if isinstance(method, str) else method.get("name", otherwise)
    return name


def needs_teacher(block: Block) -> bool:
    """Whether a model is made out of a teacher, or holds one that is, so that it cannot be built without."""
    inside = any(needs_teacher(value) for value in block.args.values() if isinstance(value, Block))
    return inside or (block.name != "auto" and bool(find("model", block.name).facts.get("from_teacher", False)))
