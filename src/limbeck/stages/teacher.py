"""Preparing teachers: loading them, or training them once and finding them again by what they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck import __version__
from limbeck.arms import file_state, fingerprints, start_files
from limbeck.codehash import code_of
from limbeck.data.base import Data, Source
from limbeck.engine.teacher import Teacher
from limbeck.engine.validation import Validator
from limbeck.errors import UserError
from limbeck.export.store import Stored
from limbeck.models.building import build_model
from limbeck.paths import cache_root
from limbeck.registry import find, register
from limbeck.run import Arm, Context
from limbeck.training import Ingredients, data_of, train

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

QUICK = 10_000
"""Samples that a teacher's own score is taken over, at most."""


@register("stage")
def teacher(context: Context) -> None:
    """Load or train every teacher of the recipe, try it on the data, and put it before the student as an arm.

    Raises:
        UserError: a teacher cannot be loaded or trained, cannot read the data, or has other classes than the data
            where the method compares logits.
    """
    for role, block in context.recipe.teachers.items():
        prepared = prepare(context, context.recipe, context.data, role)
        made, recipe = prepared.teacher, prepared.recipe or context.recipe
        arm = Arm(role, "teacher", "Teacher" if role == "teacher" else role, recipe, prepared.folder, prepared.numbers)
        arm.teacher, arm.describe = made, describe(prepared.stored)
        own_labels = block.own_data and _unlike(context, prepared.stored)
        arm.judged_by = _try(context, made, arm, needs_logits(context.recipe, role), own_labels=own_labels)
        context.teachers[role], context.arms[role] = made, arm
        loaded = ", every weight found in its file" if block.loaded and not block.finetune else ""
        context.say(
            f"{role}: {arm.describe}, {made.parameters():,} parameters, none trains{loaded}; "
            f"hash {made.hash[:12]}{_own_score(context, arm)}"
        )


def needs_logits(recipe: Recipe, role: str) -> bool:
    """Whether the method compares this teacher's logits, so that its classes must be the data's."""
    needs = find("method", recipe.method.name).facts.get("needs", {})
    return "logits" in needs.get(role, needs.get("*", ()))


@dataclass
class Prepared:
    """A teacher that is ready to teach, and the folder, recipe and numbers of its own training, if there was one."""

    teacher: Teacher
    stored: Stored
    recipe: Recipe | None = None
    folder: Path | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def prepare(
    context: Context, recipe: Recipe, data: Mapping[str, Data], role: str, *, label: str | None = None
) -> Prepared:
    """Load or train one teacher of a recipe; those that teach it come first.

    Args:
        context: the run.
        recipe: the run's, or that of a teacher which has teachers itself.
        data: that recipe's.
        role: the teacher's.
        label: shown with the progress; by default the role.

    Raises:
        UserError: it cannot be loaded or trained.
    """
    block = recipe.teachers[role]
    facts = {} if block.block.name == "auto" else find("model", block.block.name).facts
    exact = facts.get("exact", False) or facts.get("trained", False)
    if exact or (block.loaded and not block.finetune):
        here = Ingredients(data, {}, context.fabric, context.quiet)
        spec, seed = here.main.spec.as_dict(), context.recipe.seed
        stored = build_model(block.block, offers=here.offers, seed=seed, path=block.path, spec=spec)
        _say_tokens(stored)
        return Prepared(Teacher(stored.module, stored.gives, role, block.mode), stored)
    own = recipe.of_teacher(role)
    data = data_of(own, recipe, data)
    label = label or role
    above = {name: prepare(context, own, data, name, label=f"{name} of {label}").teacher for name in own.teachers}
    key = teacher_key(own, data, above, context.recipe.seed)
    folder = cache_root() / "teachers" / f"{block.block.name.replace(':', '.')}-{key[:16]}"
    ingredients = Ingredients(data, above, context.fabric, context.quiet)
    trained = train(own, ingredients, folder, seed=context.recipe.seed, key=key, label=label)
    stored = trained.model
    _say_tokens(stored)
    made = Teacher(stored.module, stored.gives, role, block.mode)
    return Prepared(made, stored, own, folder, trained.numbers)


def _say_tokens(stored: Stored) -> None:
    """Let a model say which tokenizer its training data had, where it has none with it that says so."""
    known = (stored.spec or {}).get("tokenizer_hash")
    module: Any = stored.module
    if known and getattr(module, "tokenizer_hash", None) is None:
        module.tokenizer_hash = known


def teacher_key(recipe: Recipe, data: Mapping[str, Data], above: Mapping[str, Teacher], seed: int) -> str:
    """What a trained teacher depends on: its recipe and data, and the weights of those ``above`` that taught it."""
    contents = fingerprints(data, ("train", "val"))
    code = code_of(recipe.tree, recipe.method.name)
    facts = [recipe.fingerprint("student", "method", "train"), contents, code, seed, __version__]
    if files := start_files(recipe):
        facts.append([file_state(path) for path in files])
    if above:
        facts.append({name: teacher.hash for name, teacher in above.items()})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Trying a teacher before anything is trained


def _try(
    context: Context, made: Teacher, arm: Arm, compares: bool, *, own_labels: bool = False
) -> tuple[str, ...] | None:
    """Run the teacher on two samples; gives the metrics that can judge it, None for all."""
    main = context.ingredients.main
    source = main.train or main.test or main.val
    theirs = getattr(made.module, "tokenizer_hash", None)
    unlike = bool(main.spec.tokenizer_hash and theirs and theirs != main.spec.tokenizer_hash)
    if unlike:
        _check_tokens(context, arm)
    if "logits_topk" in made.gives and "logits" not in made.gives:
        context.notes.append(f"{made.name}: {arm.describe} tells only of its likeliest tokens: it is not judged")
        return ()
    if source is None or "logits" not in made.gives or main.spec.task == "generation":
        return None
    if unlike:
        context.notes.append(f"{made.name}: {arm.describe} reads other tokens than the data: it is not judged")
        return ()
    batch = context.fabric.to_device(source.batch(torch.arange(min(2, len(source)))))
    made.module.to(context.fabric.device)
    try:
        logits = made.compute(batch).get("logits")
    except Exception as error:
        given = ", ".join(f"{k} {list(v.shape)}" for k, v in batch.items() if k.startswith("input"))
        first_line = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        says = f"{made.name}: {arm.describe} cannot read the data ({given}): {first_line}"
        if compares or ":" not in context.recipe.teachers[made.name].block.name:
            raise UserError(says) from error
        context.notes.append(f"{says}; it is left to the method to call it, and it is not judged")
        return ()
    if own_labels:
        context.notes.append(f"{made.name}: {arm.describe} was trained for other classes: it is not judged here")
        return ("efficiency",)
    wanted = main.spec.classes if main.spec.task in ("classification", "segmentation") else None
    if wanted is None or logits is None or logits.shape[-1] == wanted:
        return None
    says = f"{made.name}: {arm.describe} has {logits.shape[-1]} classes, and the data has {wanted}"
    if compares:
        raise UserError(f"{says}: method {context.recipe.method.name} compares their logits, so they must be the same")
    context.notes.append(f"{says}: it is not judged on them")
    return ("efficiency",)


def _check_tokens(context: Context, arm: Arm) -> None:
    """Refuse a teacher that reads other tokens than the data, where the method would give it the data's."""
    name = context.recipe.method.name
    if not getattr(find("method", name).load(), "any_tokenizer", False):
        raise UserError(
            f"{arm.name}: {arm.describe} reads other tokens than the data, and method '{name}' would give it the "
            "data's: make both with one tokenizer (data.tokenizer_path), or take a method that crosses tokenizers "
            "(uld, gold, dskd)"
        )


def _unlike(context: Context, stored: Stored) -> bool:
    """Whether a teacher tells other classes apart than the data has, though there may be as many."""
    names, known = context.ingredients.main.spec.class_names, (stored.spec or {}).get("class_names")
    return bool(names) and bool(known) and tuple(known or ()) != tuple(names)


def _own_score(context: Context, arm: Arm) -> str:
    """The teacher's own score on the evaluation data, as text."""
    main, made = context.ingredients.main, arm.teacher
    source = main.test or main.val
    if context.quiet or source is None or made is None or main.spec.task == "generation":
        return ""
    if "logits" not in made.gives or arm.judged_by is not None:
        return "" if arm.judged_by is None else f"; {context.notes[-1]}"
    found = Validator(First(source, QUICK))(made.module, context.fabric)
    unit = {"language": "tokens", "segmentation": "pixels"}.get(main.spec.task, "samples")
    return f"; its own score: right on {found['accuracy']:.1%} of the test {unit}, nll {found['nll']:.4g}"


class First:
    """The first rows of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.spec = source, source.spec
        self.count = min(count, len(source))

    @property
    def fingerprint(self) -> str:
        """That of the whole."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: torch.Tensor, view: int = 0) -> dict[str, Any]:
        """Rows of the source."""
        return self.source.batch(indices, view)


def describe(stored: Stored) -> str:
    """A model in a few words: its name and the arguments that are plain numbers."""
    if stored.block.name == "transformers":
        origin = str(stored.block.args.get("hub") or stored.block.args.get("path") or "")
        return type(stored.module).__name__ + (f"({Path(origin).name})" if origin else "")
    if ":" not in stored.block.name and find("model", stored.block.name).facts.get("live", False):
        return type(stored.module).__name__
    shown = {k: v for k, v in stored.block.args.items() if isinstance(v, int | float | str) and not isinstance(v, bool)}
    return f"{stored.block.name}({', '.join(f'{k}={v}' for k, v in shown.items())})"
