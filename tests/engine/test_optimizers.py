"""Optimizers beside torch's plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.registry import Block, build


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_parameter_may_get_its_first_gradient_late(nesterov):
    args = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}

    def learnt(make) -> list[torch.Tensor]:
        early, late = (nn.Parameter(torch.tensor([x, -x])) for x in (1.0, 2.0))
        optimizer = make([early, late])
        for step in range(4):
            optimizer.zero_grad()
            ((early**3).sum() + (late**2).sum() * early[0] if step > 1 else (early**3).sum()).backward()
            optimizer.step()
        return [early.detach(), late.detach()]

    ours = learnt(lambda p: build("optimizer", Block("sgd", args), p))
    plain = learnt(lambda p: torch.optim.SGD(p, **args, fused=False, foreach=False))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
