"""Judging every arm on the test split, and writing ``results.json``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.codehash import part_hash
from limbeck.engine.checkpoint import write_json
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.metrics.base import evaluate as judge
from limbeck.metrics.facts import default_metrics, judges, lacks
from limbeck.registry import Block, find, register
from limbeck.run import RESULTS, Arm, Context, machine
from limbeck.training import MODEL

if TYPE_CHECKING:
    from limbeck.data.base import Data
    from limbeck.recipe import Recipe

FRESH = "fresh_networks"
"""The metric of a student that is data."""
KINDS = {
    "mixture": "an exact mixture as the teacher, such as gaussian_ring",
    "chain": "an exact chain as the teacher, such as markov_chain",
    "denoiser": "a teacher that is a denoiser",
    "pictures": "pictures with classes as the data",
    "collection": "queries and documents as the data, such as data 'retrieval'",
    "pairs": "pairs of texts with scores as the data, such as data 'text_pairs'",
}
OF_DATA = {"pictures", "collection", "pairs"}
"""Those of them that the data alone decides."""
"""What metrics need, in words."""


@register("stage")
def evaluate(context: Context) -> None:
    """Score all arms (on the first process) and write the results."""
    context.once(partial(_judge_all, context))


def _judge_all(context: Context) -> None:
    for arm in context.arms.values():
        scored = score(context, arm)
        arm.scores, arm.details = scored.values, scored.details
    write_json(context.folder / RESULTS, results(context))


def at_hand(recipe: Recipe, data: Mapping[str, Data]) -> set[str]:
    """The kinds of teacher and data that a run has, as metrics call what they need.

    The first teacher is the one that students are judged beside; a run without any may train what is judged by itself.
    """
    found = set()
    main = next(iter(data.values()), None)
    if main is not None and main.train is not None and main.test is not None and main.spec.classes is not None:
        found |= {"pictures"} if len(main.spec.shape) == 3 and main.spec.shape[0] in (1, 3) else set()
    found |= {kind for kind in ("collection", "pairs") if main is not None and getattr(main.test, kind, None)}
    facts = _facts(_judge(recipe))
    gives = facts.get("gives", {"denoiser"} if recipe.teachers else ())
    exact = facts.get("exact", False)
    found |= {"mixture"} if exact and "denoiser" in gives else set()
    found |= {"chain"} if exact and {"codes", "concrete_score"} & set(gives) else set()
    return found | ({"denoiser"} if recipe.teachers and "denoiser" in gives else set())


def _judge(recipe: Recipe) -> Block:
    return next((t.block for t in recipe.teachers.values()), recipe.student.block)


def _facts(block: Block) -> Mapping[str, Any]:
    """What is registered of a model; of one from a folder, or of the user's own, nothing is known."""
    return {} if block.name == "auto" else find("model", block.name).facts


def metrics_of(recipe: Recipe, task: str, here: Collection[str] = ()) -> Sequence[Block]:
    """The metrics that the recipe names; networks trained on it judge a student that is data; or the task's.

    Args:
        recipe: of the arm.
        task: of the data.
        here: what :func:`at_hand` gives.
    """
    if recipe.evaluate is not None:
        return recipe.evaluate
    return [Block(FRESH)] if _is_data(recipe) else default_metrics(task, at_hand=here)


def _is_data(recipe: Recipe) -> bool:
    """Whether what learns is data and no network."""
    return bool(_facts(recipe.student.block).get("data_is_student", False))


def check_metrics(recipe: Recipe, data: Mapping[str, Data]) -> None:
    """Refuse metrics that could judge nothing here.

    Raises:
        UserError: one judges another task, or needs a kind of teacher or data that is not there; or nothing serves.
    """
    if recipe.stages is not None and "evaluate" not in {block.name for block in recipe.stages}:
        return
    task = next(iter(data.values())).spec.task if data else "generation"
    here, judge = at_hand(recipe, data), _judge(recipe)
    blocks = metrics_of(recipe, task, here)
    if recipe.evaluate is None and not blocks and task == "generation":
        raise UserError(
            "nothing here can judge a generator: give it an exact teacher such as gaussian_ring, a teacher that is a "
            "denoiser, or pictures with classes; or say evaluate: []"
        )
    known = "gives" in _facts(judge)
    for block in blocks:
        part = find("metric", block.name)
        if not judges(part, task):
            tasks = " or ".join(sorted(part.facts["task"]))
            raise UserError(f"evaluate: metric '{block.name}' judges {tasks}, and this data is for {task}")
        missing = lacks(part, here) - (set() if known else KINDS.keys() - OF_DATA)
        if missing:
            says = " and ".join(KINDS[kind] for kind in sorted(missing))
            whose = f"the teacher is {judge.name}" if recipe.teachers else "there is no teacher"
            others = ", ".join(b.name for b in default_metrics(task, at_hand=here)) or "none"
            raise UserError(f"evaluate: metric '{block.name}' needs {says}; {whose}. What serves here: {others}")


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


def _blocks(context: Context, arm: Arm) -> Sequence[Block]:
    recipe, task = context.recipe, context.ingredients.main.spec.task
    here = at_hand(recipe, context.data)
    blocks: Sequence[Block]
    if arm.role == "teacher" and arm.teacher is not None and _is_data(recipe):
        # What judges a student that is data trains networks on it: a network is judged as its task asks.
        blocks = default_metrics(task, at_hand=here) if "logits" in arm.teacher.gives else []
    else:
        blocks = metrics_of(recipe if arm.role == "teacher" else arm.recipe, task, here)
    return blocks if arm.judged_by is None else [b for b in blocks if b.name in arm.judged_by]


def _teacher(context: Context) -> Teacher | None:
    """The first teacher that the data can judge, without its cache, which holds the training split."""
    for role, teacher in context.teachers.items():
        arm = context.arms.get(role)
        if arm is None or arm.judged_by is None:
            live = Teacher(teacher.module, teacher.gives, teacher.name, teacher.mode)
            live._hash = teacher._hash
            return live
    return None


def _key(context: Context, arm: Arm, blocks: Sequence[Block]) -> str:
    """What scores depend on: the metrics and their code, the test data, the teachers, the arm."""
    main = context.ingredients.main
    metrics = [[b.tree(), part_hash(find("metric", b.name))] for b in blocks]
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
