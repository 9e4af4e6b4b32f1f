"""Losses of inversion against their definitions in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.vision.losses.inversion import (
    class_balance,
    competition,
    disagreement,
    instance_contrast,
    one_hot,
    total_variation,
)

G = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def softmax(row: torch.Tensor, temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in row.tolist()]
    return [v / sum(e) for v in e]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_total_variation_is_four_lengths() -> None:
    x = normal(3, 2, 4, 5)
    for image, found in zip(x, total_variation(x), strict=True):
        sums = [0.0] * 4
        for c in range(2):
            for i in range(4):
                for j in range(5):
                    for k, (di, dj) in enumerate([(0, 1), (1, 0), (1, 1), (1, -1)]):
                        if i + di < 4 and 0 <= j + dj < 5:
                            sums[k] += float(image[c, i + di, j + dj] - image[c, i, j]) ** 2
        assert found.item() == pytest.approx(sum(math.sqrt(s) for s in sums))


def test_total_variation_of_a_constant_image_has_a_gradient() -> None:
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    total_variation(x).sum().backward()
    assert not total_variation(x).any() and not x.grad.any()
    with pytest.raises(ValueError, match="2 x 2"):
        total_variation(torch.ones(2, 1, 1, 3))


def test_class_balance_is_the_negative_entropy_of_the_mean() -> None:
    logits = normal(5, 3)
    p = [softmax(row) for row in logits]
    mean = [sum(row[k] for row in p) / 5 for k in range(3)]
    assert class_balance(logits).item() == pytest.approx(sum(m * math.log(m) for m in mean))
    assert class_balance(torch.eye(4) * 100).item() == pytest.approx(-math.log(4))
    assert class_balance(torch.eye(4)[:1] * 1000).item() == pytest.approx(0)


def test_one_hot_is_the_cross_entropy_of_the_own_class() -> None:
    logits = normal(5, 3)
    wanted = [-math.log(max(softmax(row))) for row in logits]
    assert one_hot(logits).tolist() == pytest.approx(wanted)


def test_disagreement_counts_where_both_agree() -> None:
    s, t = normal(8, 3), normal(8, 3)
    wanted = [
        divergence(softmax(b), softmax(a)) if softmax(a).index(max(softmax(a))) == b.argmax() else 0.0
        for a, b in zip(s, t, strict=True)
    ]
    assert any(wanted) and not all(wanted)
    assert disagreement(s, t).tolist() == pytest.approx(wanted)


def test_competition_is_one_minus_jensen_shannon() -> None:
    s, t = normal(6, 4), normal(6, 4)
    for a, b, found in zip(s, t, competition(s, t, temperature=2.0), strict=True):
        p, q = softmax(a, 2.0), softmax(b, 2.0)
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        assert found.item() == pytest.approx(1 - (divergence(p, m) + divergence(q, m)) / 2)
    assert competition(s, s).tolist() == pytest.approx([1.0] * 6)


def test_instance_contrast_is_infonce_of_all_rows() -> None:
    a, b = (torch.nn.functional.normalize(normal(5, 3), dim=1) for _ in range(2))
    for i, found in enumerate(instance_contrast(a, b, temperature=0.3)):
        e = [math.exp(float(a[i] @ key) / 0.3) for key in b]
        assert found.item() == pytest.approx(-math.log(e[i] / sum(e)))
    with pytest.raises(ValueError):
        instance_contrast(a, b[:4])
