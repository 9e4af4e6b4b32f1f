"""Points of a ring of Gaussians as data: of the law that they name, with its classes or without."""

from __future__ import annotations

import torch

from limbeck.diffusion import mixture
from limbeck.registry import Block, build


def test_points_are_of_the_law_and_its_classes():
    data = build("data", Block("ring_points", {"classes": 4, "train_size": 500, "test_size": 100}))
    assert (len(data.train), len(data.test), data.spec.shape, data.spec.classes) == (500, 100, (2,), 4)
    seen, other = data.train.batch(torch.arange(100)), data.test.batch(torch.arange(100))
    law = mixture.ring(8, 4.0, 0.3, 4)
    nearest = torch.cdist(seen["input"].double(), law.means).argmin(dim=1)
    assert torch.equal(nearest % 4, seen["label"])
    assert len(nearest.unique()) == 8
    assert not torch.allclose(seen["input"], other["input"])


def test_without_classes_there_is_one_label():
    data = build("data", Block("ring_points", {"train_size": 50, "test_size": 10}))
    assert data.spec.classes is None
    assert not data.train.batch(torch.arange(50))["label"].any()
