"""DSA: gradient matching with the published augmentation."""

from __future__ import annotations

import torch

from limbeck.condensation.methods.dc import DC
from limbeck.condensation.methods.dsa import DSA
from limbeck.condensation.synthetic import SyntheticImages, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.registry import Block


def loss(kind: type[DC], data: Data, **args) -> float:
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    student = SyntheticImages(first, torch.arange(3).repeat_interleave(2), valid_range(data.spec))
    method = kind(net=Block("convnet", {"width": 4, "depth": 2}), batch_real=6, **args)
    method.setup(Parts(student, data=data.spec, offers=data.spec.offers(), streams={"data": data.train}))
    return method.terms(Clock(1, 2))["gradients"].sum.item()


def test_it_is_gradient_matching_with_every_operation(data):
    ops = ("color", "crop", "cutout", "flip", "scale", "rotate")
    assert loss(DSA, data) == loss(DC, data, augment=ops) != loss(DC, data)
    assert loss(DSA, data, augment=()) == loss(DC, data)
