"""TESLA: its gradient against that of ``mtt``, and the graphs that it holds."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.methods.mtt import MTT
from limbeck.condensation.methods.tesla import TESLA
from limbeck.engine.method import Clock
from toolkit.following import loss, ready


def gradients(data, kind, **args):
    method = ready(data, kind, **args)
    value = loss(method, Clock(2, 10, seed=3))
    value.backward()
    return value.item(), [p.grad for m in (method.student, method.learners["rate"]) for p in m.parameters()]


@pytest.mark.parametrize("args", [{}, {"soft": True}, {"momentum": 0.8}, {"batch": 4}, {"mirror": True}])
def test_of_one_step_it_is_mtt(data, args):
    one, other = (gradients(data, kind, steps=1, **args) for kind in (MTT, TESLA))
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for a, b in zip(one[1], other[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)


def test_of_several_it_has_its_value_and_nearly_its_way(data):
    one, other = (gradients(data, kind, steps=8) for kind in (MTT, TESLA))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert 0.7 < F.cosine_similarity(one[1][0].flatten(), other[1][0].flatten(), dim=0) < 0.9999


def held(data, kind, steps) -> int:
    """The most numbers that wait for a backward at once."""
    method = ready(data, kind, steps=steps)
    loss(method, Clock(0, 1))  # the experts are trained
    alive, most = [0], [0]

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def release(size: int) -> None:
        alive[0] -= size

    def pack(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        alive[0] += tensor.numel()
        most[0] = max(most[0], alive[0])
        weakref.finalize(kept, release, tensor.numel())
        return kept

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            loss(method, Clock(0, 1)).backward()
    finally:
        gc.enable()
    return most[0]


def test_its_memory_does_not_grow_with_the_steps(data):
    assert held(data, TESLA, 12) < 1.3 * held(data, TESLA, 3)
    assert held(data, MTT, 12) > 2.5 * held(data, MTT, 3)
    assert held(data, TESLA, 12) < held(data, MTT, 12) / 3
