"""Distribution matching against a float64 definition by loops."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.losses import class_means, distribution_matching


def test_loss_is_the_definition():
    generator = torch.Generator().manual_seed(0)
    real, synthetic = torch.randn(23, 5, generator=generator), torch.randn(8, 5, generator=generator)
    real_labels = torch.cat([torch.arange(4), torch.randint(0, 4, (19,), generator=generator)])
    labels = torch.tensor([3, 0, 1, 2, 1, 0, 3, 2])
    expected = []
    for c in range(4):
        gap = [
            sum(float(v[k]) for v, y in zip(real, real_labels, strict=True) if y == c) / int((real_labels == c).sum())
            - sum(float(v[k]) for v, y in zip(synthetic, labels, strict=True) if y == c) / 2
            for k in range(5)
        ]
        expected.append(sum(g * g for g in gap))
    found = distribution_matching(real, real_labels, synthetic, labels, 4)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_gradient_is_right():
    generator = torch.Generator().manual_seed(0)
    real, synthetic = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(6) % 3
    assert torch.autograd.gradcheck(
        lambda s: distribution_matching(real, labels, s, labels, 3), (synthetic.requires_grad_(),)
    )


def test_an_absent_class_has_mean_zero_and_no_nan():
    means = class_means(torch.ones(2, 3), torch.tensor([0, 0]), 2)
    assert means.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in width"):
        distribution_matching(torch.ones(2, 3), torch.zeros(2).long(), torch.ones(2, 4), torch.zeros(2).long(), 1)
    with pytest.raises(ValueError, match="labels"):
        class_means(torch.ones(2, 3), torch.zeros(3).long(), 1)
