"""Losses against float64 definitions by loops."""

from __future__ import annotations

import pytest
import torch

from limbeck.condensation.losses import attention, class_means, distribution_matching, gradient_distance


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


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 2, 2, 2), (3,), (4, 6))]


def test_distance_of_gradients_is_the_definition():
    a, b = gradients(0), gradients(1)
    rows = cosines = squares = 0.0
    dot = norm_a = norm_b = 0.0
    for x, y in ((a[0], b[0]), (a[2], b[2])):
        for u, v in zip(x.flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
            inner = sum(p * q for p, q in zip(u, v, strict=True))
            uu, vv = sum(p * p for p in u), sum(q * q for q in v)
            rows += 1 - inner / (uu**0.5 * vv**0.5 + 1e-6)
            dot, norm_a, norm_b = dot + inner, norm_a + uu, norm_b + vv
            squares += sum((p - q) ** 2 for p, q in zip(u, v, strict=True))
    cosines = 1 - dot / (norm_a**0.5 * norm_b**0.5 + 1e-6)
    for name, wanted in (("rows", rows), ("cosine", cosines), ("mse", squares)):
        assert gradient_distance(a, b, name).item() == pytest.approx(wanted, rel=1e-9)


def test_a_unit_without_gradient_is_as_far_as_can_be_and_gives_no_nan():
    a, b = gradients(0), gradients(0)
    b[2][1] = 0
    b[2].requires_grad_()
    found = gradient_distance(a, b)
    assert found.item() == pytest.approx(1, abs=1e-4)
    found.backward()
    assert b[2].grad.isfinite().all()


def test_gradients_of_other_weights_are_refused():
    with pytest.raises(ValueError, match="unlike"):
        gradient_distance(gradients(0), gradients(0)[:2])


def test_attention_is_a_unit_vector_and_of_nothing_zero():
    maps = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[2] = 0
    found = attention(maps, 2.0)
    for row in range(2):
        sums = [sum(float(maps[row, c, y, x]) ** 2 for c in range(4)) for y in range(2) for x in range(2)]
        length = sum(v * v for v in sums) ** 0.5
        assert found[row].tolist() == pytest.approx([v / length for v in sums])
    assert found[2].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="maps"):
        attention(maps[0])
