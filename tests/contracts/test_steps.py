"""What a step of any method must and must not depend on, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.checkpoint import tensor_hash
from limbeck.engine.loop import Loop
from limbeck.engine.method import Update
from limbeck.errors import UserError
from limbeck.training import start_student
from toolkit.benches import (
    ROWS,
    Bench,
    Masked,
    Run,
    ingredients_of,
    trained,
    without_batch_statistics,
)

PLAIN: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}}
AUGMENT = [{"name": "crop", "padding": 1}, {"name": "noise"}]

# -- contract 1: a step is of the global batch, however it is cut ------------------------------------------------------


def in_pieces(loop: Loop) -> None:
    """Make a learner's output depend on its sample alone, and the generator on the piece."""
    without_batch_statistics(loop)
    updates = loop.method.updates

    def reseeded(batch: Any, clock: Any) -> Iterator[Update]:
        torch.manual_seed(next(pieces))
        yield from updates(batch, clock)

    pieces = count(1000 * len(next(iter(loop.stream.batches(0, 1)))))
    loop.method.updates = reseeded  # type: ignore[method-assign]


def test_cutting_the_batch_does_not_change_what_is_learnt(bench: Bench, tmp_path: Path) -> None:
    """Adam would blow rounding up to whole steps, so every learner takes plain gradient descent.

    The global generator starts elsewhere for every piece, as it does in the processes of a run: noise belongs to the
    sample (``clock.normal``), not to the batch.
    """
    own = {role: {"optimizer": None, "clip": None} for role in bench.recipe.train.learners}
    train = {"steps": 3, "clip": None, "learners": own, **PLAIN}

    def run(accumulate: int, lr: float = PLAIN["optimizer"]["lr"]) -> Run:
        plain = {"optimizer": {**PLAIN["optimizer"], "lr": lr}}
        recipe = bench.varied(train={**train, **plain, "accumulate": accumulate})
        return trained(recipe, tmp_path / f"{accumulate}-{lr}", watch=in_pieces, wrap=Masked)

    if bench.couples_samples:
        with pytest.raises(UserError, match=r"accumulate must be 1") as refused:
            run(2)
        assert "\n" not in str(refused.value)
        return
    whole, cut = run(1), run(2)
    if whole.values("term") and moved(bench, whole) <= 2e-4:  # the loss of an untrained student may be almost flat
        whole, cut = run(1, 20.0), run(2, 20.0)
    assert whole.weights.keys() == cut.weights.keys()
    far = {k: (v - cut.weights[k]).abs().max().item() for k, v in whole.weights.items()}
    assert max(far.values()) <= 1e-5, {k: d for k, d in far.items() if d > 1e-5}
    if whole.values("term"):
        assert moved(bench, whole) > 2e-4, "the test says nothing: the student hardly moved"


def moved(bench: Bench, run: Run) -> float:
    """How far the weight that moved the most is from where the student started."""
    start = start_student(bench.recipe, run.ingredients, 0).module.state_dict()
    learnt = run.loop.learners["student"].plain.state_dict()
    return max((v - start[k]).abs().max().item() for k, v in learnt.items() if k in start)


# -- contracts 4 and 11: the teacher is left alone, the student comes out clean ----------------------------------------


def test_the_teacher_is_frozen_untouched_and_outside_the_student(bench: Bench, tmp_path: Path) -> None:
    before = {role: tensor_hash(t.module.state_dict()) for role, t in ingredients_of(bench.recipe).teachers.items()}
    seen: list[str] = []

    def watch(loop: Loop) -> None:
        inner = loop.method.after_step
        theirs = {id(m): role for role, t in loop.method.teachers.items() for m in t.module.modules()}
        for role, learner in loop.learners.items():
            shared = [theirs[id(m)] for m in learner.plain.modules() if id(m) in theirs]
            assert not shared, f"the teacher {shared[0]} is a part of the learner {role}"

        def after_step(clock: Any) -> None:
            inner(clock)
            for role, teacher in loop.method.teachers.items():
                seen.extend(role for p in teacher.module.parameters() if p.requires_grad or p.grad is not None)
                assert not any(m.training for m in teacher.module.modules()), f"{role} is in training mode"

        loop.method.after_step = after_step  # type: ignore[method-assign]

    run = trained(bench.varied(train={"steps": 2}), tmp_path, watch=watch)
    assert not seen, f"parameters of {seen[0]} take gradients"
    for role, teacher in run.ingredients.teachers.items():
        assert tensor_hash(teacher.module.state_dict()) == before[role], f"the weights of {role} have changed"


def test_the_delivered_student_has_no_trace_of_the_method(bench: Bench, whole: Callable[[Bench], Run]) -> None:
    run = whole(bench)
    fresh = start_student(bench.recipe, ingredients_of(bench.recipe), 0).module
    assert run.trained is not None
    for student in (run.loop.learners["student"].plain, run.trained.model.module):
        assert type(student) is type(fresh)
        assert list(student.state_dict()) == list(fresh.state_dict())
        assert {n: type(m) for n, m in student.named_modules()} == {n: type(m) for n, m in fresh.named_modules()}
    last = run.loop.learners["student"].plain.state_dict()
    delivered = run.trained.model.module.state_dict()
    assert all(torch.equal(v, delivered[k]) for k, v in last.items())


# -- contract 5: no term is dead or unseen -----------------------------------------------------------------------------


def test_every_term_is_logged_with_value_weight_and_share(bench: Bench, whole: Callable[[Bench], Run]) -> None:
    run = whole(bench)
    logged = {key for row in run.rows for key in row}
    terms = {(role, key.removeprefix("term/")) for _, role, key in run.values("term")}
    for role, term in terms:
        name = term if role == "student" else f"{role}.{term}"
        assert {f"term/{name}", f"weighted/{name}", f"share/{name}"} <= logged, (role, term)
    shares = {(role, k.removeprefix("share/")) for (_, role, k), value in run.values("share").items() if value > 0}
    assert terms == shares, f"without any gradient: {terms - shares}"
    assert bool(terms) == bool(run.values("lr")), "a learner steps without a term, or a term without a learner"


# -- contract 6: teacher and student look at the same sample -----------------------------------------------------------


def test_the_teacher_sees_the_very_input_that_a_learner_sees(bench: Bench, tmp_path: Path) -> None:
    seen: dict[str, set[str]] = {"teacher": set(), "learner": set(), "batch": set(), "student": set()}
    checked = []

    def watch(loop: Loop) -> None:
        for teacher in loop.method.teachers.values():
            _spy(teacher.module, seen["teacher"])
        for learner in loop.learners.values():
            _spy(learner.plain, seen["learner"])
        loop.learners["student"].plain.register_forward_pre_hook(lambda *_: seen["student"].add("ran"))
        updates, after = loop.method.updates, loop.method.after_step

        def spied(batch: Any, clock: Any) -> Any:
            seen["batch"] = {tensor_hash({"": v}) for v in _inputs(batch)}
            yield from updates(batch, clock)

        def after_step(clock: Any) -> None:
            after(clock)
            checked.append({k: set(v) for k, v in seen.items()})
            for found in seen.values():
                found.clear()

        loop.method.updates = spied  # type: ignore[method-assign]
        loop.method.after_step = after_step  # type: ignore[method-assign]

    run = trained(_augmented(bench), tmp_path, watch=watch)
    assert len(checked) == run.loop.step
    if not getattr(bench.method, "same_view", True):
        return
    for step in checked:
        # Where the student does not run (an autoencoder of the teacher's features learns alone) there is the batch.
        shown_to = step["learner"] if step["student"] else step["learner"] | step["batch"]
        assert step["teacher"] <= shown_to, "the teacher saw what no learner saw"
    shown = [min(step["batch"]) for step in checked if step["batch"]]
    assert len(set(shown)) == len(shown), "the test says nothing: the steps do not differ"


def _augmented(bench: Bench) -> Any:
    """The bench under an augmentation, with one batch an epoch, so that every step has a view of its own."""
    block = bench.recipe.tree.get("data")
    if not isinstance(block, dict) or block.get("name") != "digits":
        return bench.varied(train={"steps": 3})
    return bench.varied(data={"augment": AUGMENT}, train={"steps": 3, "batch_size": ROWS})


def _spy(module: nn.Module, found: set[str]) -> None:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args[:1], *(kwargs[k] for k in ("input_ids", "pixel_values", "input") if k in kwargs)]
        # Inside a forward-mode derivative an input has no values of its own; it was seen when it was drawn.
        real = (t for t in given if isinstance(t, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(t))
        found.update(tensor_hash({"": t}) for t in real)

    module.register_forward_pre_hook(note, with_kwargs=True)


def _inputs(batch: dict[str, Any]) -> list[Tensor]:
    found = [batch[k] for k in ("input", "input_ids", "teacher_input") if k in batch]
    return found + [t for value in batch.values() if isinstance(value, dict) for t in _inputs(value)]
