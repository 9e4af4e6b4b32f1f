"""Truncated distributions against a float64 definition, autograd, and the shortcuts that they replace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.truncated import TopK, topk_from_logprobs, topk_of, truncated_kl

DIRECTIONS = ["forward", "reverse"]


def logits(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def brute_force(student: np.ndarray, teacher: np.ndarray, k: int, direction: str, temperature: float) -> float:
    """The definition for one row, in float64 probabilities: two (k + 1)-bucket distributions and their KL."""

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x / temperature - (x / temperature).max())
        return e / e.sum()

    p, q = softmax(teacher), softmax(student)
    kept = np.argsort(-p)[:k]
    rest = np.setdiff1d(np.arange(len(p)), kept)
    p, q = ([*x[kept], x[rest].sum()] if len(rest) else list(x[kept]) for x in (p, q))
    p, q = (p, q) if direction == "forward" else (q, p)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def full_kl(student: torch.Tensor, teacher: torch.Tensor, direction: str) -> torch.Tensor:
    s, t = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    p, q = (t, s) if direction == "forward" else (s, t)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (3, 1.0), (3, 4.0), (11, 0.5), (12, 1.0)])
def test_value_is_that_of_the_bucket_definition(direction, k, temperature):
    student, teacher = logits(4, 2, 12), logits(4, 2, 12, seed=1)
    got = truncated_kl(student, topk_of(teacher, k, temperature), direction, temperature)
    expected = [
        [brute_force(s, t, k, direction, temperature) for s, t in zip(ss, tt, strict=True)]
        for ss, tt in zip(student.double().numpy(), teacher.double().numpy(), strict=True)
    ]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [1, 3, 6, 7])
def test_gradient_is_exact(direction, k):
    student = logits(3, 7, dtype=torch.float64).requires_grad_()
    topk = topk_of(logits(3, 7, seed=1, dtype=torch.float64), k, 2.0)
    assert torch.autograd.gradcheck(lambda x: truncated_kl(x, topk, direction), (student,))


def test_forward_gradient_is_the_closed_form():
    """d KL / d z_j is q_j - p_j on kept classes; in the tail it is q_j (1 - P_tail / Q_tail)."""
    student, teacher = logits(5, 9, dtype=torch.float64).requires_grad_(), logits(5, 9, seed=1, dtype=torch.float64)
    topk = topk_of(teacher, 3)
    (gradient,) = torch.autograd.grad(truncated_kl(student, topk).sum(), student)
    p, q = teacher.softmax(-1), student.detach().softmax(-1)
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, topk.indices, True)
    tails = [x.masked_fill(kept, 0).sum(-1, keepdim=True) for x in (p, q)]
    torch.testing.assert_close(gradient, torch.where(kept, q - p, q * (1 - tails[0] / tails[1])))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("left_out", [0, 1])
def test_keeping_all_or_all_but_one_is_the_full_kl(direction, left_out):
    student, teacher = logits(6, 10).requires_grad_(), logits(6, 10, seed=1)
    got = truncated_kl(student, topk_of(teacher, 10 - left_out), direction)
    reference = full_kl(student, teacher, direction)
    torch.testing.assert_close(got, reference, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (got, reference)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 10**6), st.floats(0.01, 80), st.floats(0, 1), st.sampled_from(DIRECTIONS))
def test_is_never_negative_and_never_above_the_full_kl(k, seed, scale, nearness, direction):
    teacher = logits(8, 20, seed=seed, scale=scale)
    student = (1 - nearness**4) * logits(8, 20, seed=seed + 1, scale=scale) + nearness**4 * teacher
    got = truncated_kl(student, topk_of(teacher, k), direction)
    full = full_kl(student.double(), teacher.double(), direction)
    assert (got >= 0).all()
    assert (got.double() <= full * (1 + 1e-4) + 1e-5).all()


def test_no_loss_at_the_teacher_and_no_gradient_there():
    teacher = logits(16, 50).requires_grad_()
    for direction in DIRECTIONS:
        loss = truncated_kl(teacher, topk_of(teacher, 5), direction)
        (gradient,) = torch.autograd.grad(loss.sum(), teacher)
        assert loss.max() < 1e-6
        assert gradient.abs().max() < 1e-6


def test_a_tiny_tail_keeps_its_gradient():
    """At a tail of 1e-13, log(1 - covered) is -inf in float32; the gradient must still be right."""
    teacher = torch.tensor([[30.0, 0.0, -1.0, -2.0]])
    student = torch.tensor([[32.0, 0.0, 1.0, 0.5]], requires_grad=True)
    topk = topk_of(teacher, 1)
    expected = torch.logsumexp(teacher[:, 1:].double(), -1) - torch.logsumexp(teacher.double(), -1)
    torch.testing.assert_close(topk.log_tail.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(truncated_kl(student, topk, "reverse").sum(), student)
    wide = student.detach().double().requires_grad_()
    (reference,) = torch.autograd.grad(truncated_kl(wide, topk_of(teacher.double(), 1), "reverse").sum(), wide)
    assert (gradient[:, 1:] != 0).all()
    torch.testing.assert_close(gradient[:, 1:].double(), reference[:, 1:], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_compared_in_float32(dtype):
    student, teacher = logits(4, 30).to(dtype), logits(4, 30, seed=1).to(dtype)
    got = truncated_kl(student, topk_of(teacher, 4))
    torch.testing.assert_close(got, truncated_kl(student.float(), topk_of(teacher.float(), 4)), rtol=0, atol=0)


def test_classes_that_the_teacher_rules_out_cost_nothing_and_break_nothing():
    teacher = torch.tensor([[2.0, 1.0, -math.inf, -math.inf]])
    student = logits(1, 4).requires_grad_()
    for k in (2, 3, 4):
        loss = truncated_kl(student, topk_of(teacher, k))
        torch.testing.assert_close(loss, truncated_kl(student, topk_of(teacher, 2)))
        assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_the_naive_sum_goes_below_zero_and_wants_a_student_without_a_tail():
    teacher = torch.tensor([[2.0, 1.1, 1.0, 1.0, 1.0]])
    topk = topk_of(teacher, 2)
    overconfident = torch.tensor([[2.0, 1.0, -9.0, -9.0, -9.0]])
    kept = torch.log_softmax(overconfident, -1).gather(-1, topk.indices)
    naive = (topk.logprobs.exp() * (topk.logprobs - kept)).sum(-1)
    assert naive.item() < -0.3
    assert truncated_kl(overconfident, topk).item() > 1.0


def test_the_renormalised_kl_does_not_see_mass_on_wrong_classes():
    teacher = torch.tensor([[2.0, 1.0, -3.0, -3.0, -3.0]])
    topk = topk_of(teacher, 2)
    wrong = torch.tensor([[2.0, 1.0, 8.0, 8.0, 8.0]])
    kept = torch.log_softmax(wrong.gather(-1, topk.indices), -1)
    target = torch.log_softmax(topk.logprobs, -1)
    renormalised = (target.exp() * (target - kept)).sum(-1)
    assert renormalised.abs().item() < 1e-6
    assert truncated_kl(wrong, topk).item() > 5.0


def test_topk_sums_to_one_with_its_tail_and_reports_covered_mass():
    topk = topk_of(logits(7, 100), 10)
    torch.testing.assert_close(topk.covered + topk.log_tail.exp(), torch.ones(7))
    assert topk.k == 10
    assert not topk.logprobs.requires_grad
    assert (topk.logprobs.diff(dim=-1) <= 0).all()


def test_log_probabilities_of_an_endpoint_get_the_missing_mass_as_tail():
    whole = topk_of(logits(7, 100), 10)
    got = topk_from_logprobs(whole.indices, whole.logprobs)
    torch.testing.assert_close(got.log_tail, whole.log_tail, rtol=1e-4, atol=1e-4)
    rounded_up = topk_from_logprobs(torch.tensor([[0, 1]]), torch.log(torch.tensor([[0.7, 0.3001]])))
    assert rounded_up.log_tail.item() == -math.inf
    torch.testing.assert_close(rounded_up.covered, torch.ones(1))


def test_mismatched_sides_are_refused_not_broadcast():
    topk = topk_of(logits(4, 10), 3)
    with pytest.raises(ValueError, match=r"\(1, 10\).*\(4, 3\)"):
        truncated_kl(logits(1, 10), topk)
    with pytest.raises(ValueError, match=r"12 classes.*over 10"):
        truncated_kl(logits(4, 12), topk)
    with pytest.raises(ValueError, match="truncated at temperature 1 and cannot be moved to 4"):
        truncated_kl(logits(4, 10), topk, temperature=4.0)
    with pytest.raises(ValueError, match="direction"):
        truncated_kl(logits(4, 10), topk, direction="sideways")
    with pytest.raises(ValueError, match="same shape"):
        topk_from_logprobs(topk.indices[:, :2], topk.logprobs)
    for k, temperature in ((0, 1.0), (11, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            topk_of(logits(4, 10), k, temperature)


def test_a_move_keeps_everything():
    topk = topk_of(logits(4, 10), 3, 2.0)
    moved = topk.to("cpu")
    assert isinstance(moved, TopK)
    assert (moved.temperature, moved.classes, moved.k) == (2.0, 10, 3)
