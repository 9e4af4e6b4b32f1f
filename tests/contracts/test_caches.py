"""A cache of the teacher's outputs changes nothing but the time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.benches import Run, bench_of, ingredients_of, methods, trained

SERVED = [m for m in methods() if bench_of(m).needs_logits and len(bench_of(m).recipe.data) == 1]
"""A cache is of one stream of data."""


def apart(one: Run, other: Run) -> float:
    """Largest difference of a weight."""
    a, b = one.weights, other.weights
    assert a.keys() == b.keys()
    return max((v - b[k]).abs().max().item() for k, v in a.items() if v.is_floating_point())


def asked(run: Run) -> list[str]:
    """Which teachers were served from a cache."""
    return [role for role, teacher in run.ingredients.teachers.items() if teacher.stored is not None]


@pytest.mark.parametrize("name", SERVED)
def test_a_full_cache_equals_the_live_teacher(name: str, tmp_path: Path) -> None:
    bench = bench_of(name)
    live = trained(bench.recipe, tmp_path / "live", keep=False)
    cached = trained(bench.varied(cache={"mode": "full"}), tmp_path / "cached", fill=True, keep=False)
    assert asked(cached) == list(cached.ingredients.teachers)
    assert apart(live, cached) <= 1e-6


IN_MODE = {"sparse_kd": {"mode": "tail", "k": 64}}
"""How a method of several modes uses the tail; more tokens than there are is all of them."""


@pytest.mark.parametrize("name", [m for m in SERVED if bench_of(m).method.truncated])
def test_a_truncated_cache_of_all_classes_equals_the_live_teacher(name: str, tmp_path: Path) -> None:
    """Gradient descent: Adam makes whole steps of rounding. With one class fewer the tail is that class: equal too."""
    bench, own = bench_of(name), IN_MODE.get(name, {})
    train = {"optimizer": None, "clip": None, "learners": None}
    plain = {**train, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    live = trained(bench.varied(train=plain, method=own), tmp_path / "live", keep=False)
    main = live.ingredients.main.spec
    classes = main.classes or main.vocab_size
    assert classes
    for k in (classes, classes - 1):
        recipe = bench.varied(train=plain, method=own, cache={"mode": "topk", "k": k})
        cached = trained(recipe, tmp_path / str(k), fill=True, keep=False)
        assert asked(cached) == list(cached.ingredients.teachers)
        assert apart(live, cached) <= 1e-4


@pytest.mark.parametrize("name", SERVED)
def test_a_served_teacher_is_never_asked(name: str, tmp_path: Path) -> None:
    """What the cache is for: the teacher's network does not run in training."""
    bench, calls = bench_of(name), []

    def watch(loop) -> None:  # type: ignore[no-untyped-def]
        for role, teacher in loop.method.teachers.items():
            teacher.module.register_forward_pre_hook(lambda *a, role=role: calls.append(role))

    trained(bench.varied(cache={"mode": "full"}, train={"steps": 2}), tmp_path, fill=True, watch=watch, keep=False)
    assert not calls
    assert torch.is_grad_enabled() and ingredients_of(bench.recipe).teachers
