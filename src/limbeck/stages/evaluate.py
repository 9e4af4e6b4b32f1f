"""Judging every arm on the test split, and writing ``results.json``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.codehash import part_hash
from limbeck.engine.checkpoint import write_json
from limbeck.engine.teacher import Teacher
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.base import evaluate as judge
from limbeck.metrics.facts import default_metrics
from limbeck.registry import Block, find, register
from limbeck.run import RESULTS, Arm, Context, machine
from limbeck.training import MODEL

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

FRESH = "fresh_networks"
"""The metric of a student that is data."""


@register("stage")
def evaluate(context: Context) -> None:
    """Score all arms (on the first process) and write the results."""
    context.once(partial(_judge_all, context))


def _judge_all(context: Context) -> None:
    for arm in context.arms.values():
        scored = score(context, arm)
        arm.scores, arm.details = scored.values, scored.details
    write_json(context.folder / RESULTS, results(context))


def metrics_of(recipe: Recipe) -> Sequence[Block] | None:
    """The metrics that the recipe names; networks trained on it judge a student that is data; None for the task's."""
    if recipe.evaluate is not None:
        return recipe.evaluate
    named = recipe.student.block.name
    is_data = named != "auto" and find("model", named).facts.get("data_is_student", False)
    return [Block(FRESH)] if is_data else None


def score(context: Context, arm: Arm) -> Scores:
    """The metrics of one arm, from its folder if it was judged the same way before."""
    blocks = _blocks(context, arm)
    kept = None
    if arm.folder is not None and arm.role != "teacher":
        kept = arm.folder / f"scores-{_key(context, arm, blocks)[:10]}.json"
        if kept.exists():
            return Scores(**json.loads(kept.read_text(encoding="utf8")))
    if arm.teacher is not None:
        module, beside = arm.teacher.module, None
    else:
        from limbeck.export import store

        assert arm.folder is not None
        module, beside = store.load(arm.folder / MODEL).module, _teacher(context)
    main = context.ingredients.main
    evaluation = Evaluation(
        model=module.to(context.fabric.device).eval(),
        spec=main.spec,
        source=main.test,
        train=main.train,
        teacher=beside,
        device=context.fabric.device,
        seed=context.seed,
        name=arm.name,
    )
    scored = judge(evaluation, blocks)
    if kept:
        write_json(kept, {"values": scored.values, "details": scored.details})
    return scored


def _blocks(context: Context, arm: Arm) -> Sequence[Block] | None:
    blocks = metrics_of(context.recipe if arm.role == "teacher" else arm.recipe)
    if arm.judged_by is None:
        return blocks
    whole = default_metrics(context.ingredients.main.spec.task) if blocks is None else blocks
    return [b for b in whole if b.name in arm.judged_by]


def _teacher(context: Context) -> Teacher | None:
    """The first teacher that the data can judge, without its cache, which holds the training split."""
    for role, teacher in context.teachers.items():
        arm = context.arms.get(role)
        if arm is None or arm.judged_by is None:
            live = Teacher(teacher.module, teacher.gives, teacher.name, teacher.mode)
            live._hash = teacher._hash
            return live
    return None


def _key(context: Context, arm: Arm, blocks: Sequence[Block] | None) -> str:
    """What scores depend on: the metrics and their code, the test data, the teachers, the arm."""
    main = context.ingredients.main
    chosen = default_metrics(main.spec.task) if blocks is None else blocks
    metrics = [[b.tree(), part_hash(find("metric", b.name))] for b in chosen]
    teachers = {n: t.hash for n, t in context.teachers.items()}
    facts = [metrics, getattr(main.test, "fingerprint", ""), teachers, str(arm.folder), context.seed, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


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
