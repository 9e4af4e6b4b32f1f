"""Flat trajectories: experts of another kind, and otherwise the matching of ``mtt``."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.experts import Course, trajectories
from limbeck.condensation.methods.ftd import FTD
from limbeck.condensation.methods.mtt import MTT
from limbeck.engine.method import Clock
from toolkit.following import loss, ready

CPU = torch.device("cpu")


def weights(method, **given):
    return method.expert_weights(Clock(0, 1, seed=2), 1, [0, 2], CPU)


@pytest.mark.parametrize("args", [{"ascent": "sam", "rho": 0.3}, {"ascent": "gsam", "rho": 0.3, "alpha": 0.5}])
def test_the_experts_take_the_flat_way(data, args):
    method = ready(data, FTD, **args)
    start, found = weights(method)
    flat = {"flat": args["ascent"], "rho": 0.3, "alpha": args.get("alpha", 1.0)}
    course = Course(epochs=4, batch_size=16, lr=0.1, augment=method.augment, **flat)
    key = (2, "expert", 1, "course")
    expected = trajectories(method.flat, start[None], method.real, course, [key], until=2, stacked=False)
    assert torch.equal(found, expected[0, 2])
    assert not torch.allclose(found, weights(ready(data, MTT))[1])
    assert torch.equal(start, weights(ready(data, MTT))[0])


def test_without_any_ascent_it_is_mtt(data):
    still = ready(data, FTD, rho=0.0, alpha=0.0)
    assert loss(still, Clock(1, 4)).item() == pytest.approx(loss(ready(data, MTT), Clock(1, 4)).item(), rel=1e-4)
