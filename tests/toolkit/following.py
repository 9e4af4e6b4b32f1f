"""Methods that follow experts, ready for a step on a small data set."""

from __future__ import annotations

import torch

from limbeck.condensation.following import Following
from limbeck.condensation.methods.mtt import MTT
from limbeck.condensation.synthetic import SyntheticImages, first_targets, valid_range
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.registry import Block

NET = Block("convnet", {"width": 4, "depth": 1})
OPS = ("crop", "scale", "rotate")
SMALL = {"net": NET, "experts": 3, "expert_epochs": 4, "expert_batch": 16, "expert_lr": 0.1, "keep": None}
SMALL |= {"steps": 3, "ahead": 2, "starts": 3, "augment": OPS}


def ready(data: Data, kind: type[Following] = MTT, *, soft=False, rate=0.2, mirror=False, teachers=None, **args):
    first = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(3).repeat_interleave(2)
    targets = first_targets(labels, 3, centred=False) + 0.1 if soft else None
    student = SyntheticImages(first, labels, valid_range(data.spec), targets=targets, rate=rate, mirror=mirror)
    method = kind(**{**SMALL, **args})
    streams = {"data": data.train}
    method.setup(Parts(student, teachers or {}, data=data.spec, offers=data.spec.offers(), streams=streams, quiet=True))
    return method


def loss(method: Following, clock: Clock) -> torch.Tensor:
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student", "rate"), 1, 1.0)
    return term.sum
