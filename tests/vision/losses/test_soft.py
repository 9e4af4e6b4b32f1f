"""Soft targets against brute force in float64."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.losses import soft_kl
from limbeck.vision.losses.soft import mean_probabilities, soft_cross_entropy, subclass_kl

G = torch.Generator().manual_seed(0)
STUDENT = torch.randn(5, 3, generator=G, dtype=torch.float64)
TEACHERS = [torch.randn(5, 3, generator=G, dtype=torch.float64) * 2 for _ in range(3)]
FINE = torch.randn(5, 3, 4, generator=G, dtype=torch.float64)
SCORES = torch.randn(5, 3, 4, generator=G, dtype=torch.float64)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    e = [math.exp(v / temperature) for v in row]
    return [v / sum(e) for v in e]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_mean_is_of_probabilities(temperature: float) -> None:
    mean = mean_probabilities(TEACHERS, temperature)
    for i in range(5):
        rows = [softmax(t[i].tolist(), temperature) for t in TEACHERS]
        wanted = [sum(r[k] for r in rows) / 3 for k in range(3)]
        torch.testing.assert_close(mean[i], torch.tensor(wanted, dtype=torch.float64))


def test_soft_cross_entropy_is_its_definition() -> None:
    targets = mean_probabilities(TEACHERS)
    values = soft_cross_entropy(STUDENT, targets)
    for i in range(5):
        p = softmax(STUDENT[i].tolist())
        assert values[i].item() == pytest.approx(-sum(q * math.log(a) for q, a in zip(targets[i], p, strict=True)))
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, targets), (student,))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_subclass_kl_is_its_definition(temperature: float) -> None:
    values = subclass_kl(FINE, TEACHERS[0], SCORES, temperature)
    for i in range(5):
        student = softmax(FINE[i].flatten().tolist(), temperature)
        classes = softmax(TEACHERS[0][i].tolist())
        whole = [p * q for c, p in enumerate(classes) for q in softmax(SCORES[i, c].tolist())]
        softened = [p ** (1 / temperature) for p in whole]
        teacher = [p / sum(softened) for p in softened]
        wanted = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
        assert values[i].item() == pytest.approx(temperature**2 * wanted, rel=1e-9)


def test_a_student_that_follows_sums_to_the_teachers_classes() -> None:
    followed = TEACHERS[0].log_softmax(-1)[..., None] + SCORES.log_softmax(-1)
    assert subclass_kl(followed, TEACHERS[0], SCORES, 4.0).abs().max() < 1e-12
    torch.testing.assert_close(followed.logsumexp(-1).softmax(-1), TEACHERS[0].softmax(-1))


def test_a_single_subclass_is_classical_distillation() -> None:
    torch.testing.assert_close(
        subclass_kl(STUDENT[..., None], TEACHERS[0], torch.zeros(5, 3, 1).double(), 2.0),
        soft_kl(STUDENT, TEACHERS[0], temperature=2.0),
    )


def test_unlike_shapes_are_refused() -> None:
    wrongs = [
        (FINE, TEACHERS[0], SCORES[..., :3]),
        (FINE, TEACHERS[0][:, :2], SCORES),
        (FINE[:2], TEACHERS[0], SCORES[:2]),
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError):
            subclass_kl(*wrong)
    with pytest.raises(ValueError):
        soft_cross_entropy(STUDENT, TEACHERS[0][:, :1])
    with pytest.raises(ValueError):
        mean_probabilities([TEACHERS[0], TEACHERS[1][:2]])


def test_half_precision_is_computed_in_single() -> None:
    half = [(t * 30).half() for t in (STUDENT, *TEACHERS)]
    assert mean_probabilities(half[1:]).dtype == torch.float32
    value = soft_cross_entropy(half[0], mean_probabilities(half[1:]))
    assert value.dtype == torch.float32 and value.isfinite().all()
