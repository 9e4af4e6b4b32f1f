"""Judging every arm on the test split, and writing ``results.json``."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from limbeck.engine.checkpoint import write_json
from limbeck.engine.teacher import Teacher
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.base import evaluate as judge
from limbeck.registry import find, register
from limbeck.run import RESULTS, Arm, Context, machine
from limbeck.training import MODEL


@register("stage")
def evaluate(context: Context) -> None:
    """Score all arms (on the first process) and write the results."""
    if context.first:
        for arm in context.arms.values():
            scored = score(context, arm)
            arm.scores, arm.details = scored.values, scored.details
        write_json(context.folder / RESULTS, results(context))
    context.fabric.barrier()


def score(context: Context, arm: Arm) -> Scores:
    """The metrics of one arm, from its folder if it was judged the same way before."""
    key = _key(context, arm)
    kept = arm.folder / f"scores-{key[:10]}.json" if arm.folder and arm.role != "teacher" else None
    if kept and kept.exists():
        return Scores(**json.loads(kept.read_text(encoding="utf8")))
    teacher = next(iter(context.teachers.values()), None)
    if arm.teacher is not None:
        module, beside = arm.teacher.module, None
    else:
        from limbeck.export import store

        assert arm.folder is not None
        module, beside = store.load(arm.folder / MODEL).module, teacher
    main = context.ingredients.main
    evaluation = Evaluation(
        model=module.to(context.fabric.device).eval(),
        spec=main.spec,
        source=main.test,
        train=main.train,
        teacher=_live(beside),
        device=context.fabric.device,
        seed=context.seed,
        name=arm.name,
    )
    scored = judge(evaluation, arm.recipe.evaluate if arm.role != "teacher" else context.recipe.evaluate)
    if kept:
        write_json(kept, {"values": scored.values, "details": scored.details})
    return scored


def _live(teacher: Teacher | None) -> Teacher | None:
    """The teacher without its cache, which holds the training split."""
    if teacher is None:
        return None
    live = Teacher(teacher.module, teacher.gives, teacher.name, teacher.mode)
    live._hash = teacher._hash
    return live


def _key(context: Context, arm: Arm) -> str:
    test = getattr(context.ingredients.main.test, "fingerprint", "")
    facts = [context.recipe.fingerprint("evaluate"), test, {n: t.hash for n, t in context.teachers.items()}]
    return hashlib.sha256(json.dumps([*facts, str(arm.folder)], sort_keys=True).encode()).hexdigest()


def results(context: Context) -> dict[str, Any]:
    """The content of ``results.json``; the report and every comparison are made from it."""
    recipe, part = context.recipe, find("method", context.recipe.method.name)
    return {
        "title": recipe.title,
        "slug": recipe.slug,
        "method": recipe.method.name,
        "family": part.family,
        "task": context.ingredients.main.spec.task,
        "paper": recipe.paper,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": context.seed,
        "spec": context.ingredients.main.spec.as_dict(),
        "machine": machine(context.fabric),
        "arms": {name: _arm(context, arm) for name, arm in context.arms.items()},
        "plan": [list(row) for row in recipe.plan()],
        "notes": context.notes,
        "warnings": context.warnings,
    }


def _arm(context: Context, arm: Arm) -> dict[str, Any]:
    inside = arm.folder is not None and arm.folder.is_relative_to(context.folder)
    folder = arm.folder.relative_to(context.folder) if inside and arm.folder else arm.folder
    return {
        "role": arm.role,
        "label": arm.label,
        "describe": arm.describe,
        "method": arm.recipe.method.name if arm.folder else None,
        "metrics": arm.scores,
        "details": arm.details,
        "train_seconds": arm.numbers.get("seconds"),
        "steps": arm.numbers.get("steps"),
        "log": str(folder / "metrics.jsonl") if folder else None,
        "artifact": str(folder / MODEL) if folder else None,
    }
