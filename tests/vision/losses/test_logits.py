"""Classifier losses against brute force in float64, and against each other where the papers say they agree."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.losses import cross_entropy, js, kl, label_loss, soft_kl, taught
from limbeck.truncated import topk_of
from limbeck.vision.losses import binary_log_probs, dkd, nckd, tckd
from limbeck.vision.losses.logits import (
    balanced_kl,
    dist_inter,
    dist_intra,
    nkd,
    soft_cross_entropy,
    standardized,
    standardized_kl,
    tempered_kl,
)

G = torch.Generator().manual_seed(0)
STUDENT = torch.randn(5, 7, generator=G, dtype=torch.float64)
TEACHER = torch.randn(5, 7, generator=G, dtype=torch.float64) * 2
LABELS = torch.tensor([0, 3, 6, 2, 2])


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    e = [math.exp((v - top) / temperature) for v in row]
    return [v / sum(e) for v in e]


def brute_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("direction", ["forward", "reverse", "jeffreys", "js"])
def test_soft_kl_is_its_definition(temperature: float, direction: str) -> None:
    got = soft_kl(STUDENT, TEACHER, temperature=temperature, direction=direction)
    for i in range(5):
        s, t = softmax(STUDENT[i].tolist(), temperature), softmax(TEACHER[i].tolist(), temperature)
        m = [(a + b) / 2 for a, b in zip(s, t, strict=True)]
        expected = {
            "forward": brute_kl(t, s),
            "reverse": brute_kl(s, t),
            "jeffreys": (brute_kl(t, s) + brute_kl(s, t)) / 2,
            "js": (brute_kl(t, m) + brute_kl(s, m)) / 2,
        }[direction]
        assert got[i].item() == pytest.approx(temperature**2 * expected, rel=1e-10)


def test_the_gradient_of_the_soft_target_loss_stays_on_the_scale_of_cross_entropy() -> None:
    """Hinton's T^2: as T grows the gradient tends to (z_s - z_t) / K for centred logits."""
    s, t = (x - x.mean(1, keepdim=True) for x in (STUDENT, TEACHER))
    s = s.clone().requires_grad_()
    soft_kl(s, t, temperature=1e4).sum().backward()
    assert torch.allclose(s.grad, (s - t).detach() / 7, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_parts_are_their_definitions(temperature: float) -> None:
    for i, y in enumerate(LABELS.tolist()):
        s, t = softmax(STUDENT[i].tolist(), temperature), softmax(TEACHER[i].tolist(), temperature)
        target = brute_kl([t[y], 1 - t[y]], [s[y], 1 - s[y]])
        rest_s = [v / (1 - s[y]) for k, v in enumerate(s) if k != y]
        rest_t = [v / (1 - t[y]) for k, v in enumerate(t) if k != y]
        assert tckd(STUDENT, TEACHER, LABELS, temperature)[i].item() == pytest.approx(target, rel=1e-9)
        others = nckd(STUDENT, TEACHER, LABELS, temperature)[i].item()
        assert others == pytest.approx(brute_kl(rest_t, rest_s), rel=1e-9)


def test_classical_distillation_is_tckd_plus_the_untaught_mass_times_nckd() -> None:
    """Zhao et al. 2022, eq. 5-6."""
    p = torch.softmax(TEACHER / 4, 1).gather(1, LABELS[:, None])[:, 0]
    whole = tckd(STUDENT, TEACHER, LABELS, 4.0) + (1 - p) * nckd(STUDENT, TEACHER, LABELS, 4.0)
    assert torch.allclose(whole, kl(torch.log_softmax(TEACHER / 4, 1), torch.log_softmax(STUDENT / 4, 1)))


def test_dkd_weighs_its_parts() -> None:
    value = dkd(STUDENT, TEACHER, LABELS, alpha=0.5, beta=3.0, temperature=2.0)
    parts = 0.5 * tckd(STUDENT, TEACHER, LABELS, 2.0) + 3.0 * nckd(STUDENT, TEACHER, LABELS, 2.0)
    assert torch.allclose(value, 4 * parts)


def test_gradients_are_right_and_stable_when_the_student_is_sure() -> None:
    s = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dkd(x, TEACHER, LABELS), (s,))
    sure = torch.zeros(1, 4).index_fill_(1, torch.tensor([1]), 200.0).requires_grad_()
    value = dkd(sure, torch.zeros(1, 4), torch.tensor([1]))
    value.sum().backward()
    assert value.isfinite().all() and sure.grad.isfinite().all()


def test_unlabelled_samples_give_zero_and_no_gradient() -> None:
    s = STUDENT.clone().requires_grad_()
    labels = torch.tensor([0, -100, 6, 2, -100])
    value = dkd(s, TEACHER, labels)
    assert value[1] == value[4] == 0 and (value[[0, 2, 3]] > 0).all()
    value.sum().backward()
    assert (s.grad[[1, 4]] == 0).all()


def test_binary_log_probs_sum_to_one() -> None:
    assert torch.allclose(binary_log_probs(torch.log_softmax(STUDENT, 1), LABELS).exp().sum(1), torch.ones(5).double())


@pytest.mark.parametrize("loss", [soft_kl, lambda s, t: dkd(s, t, LABELS), kl])
def test_a_teacher_batch_of_one_is_refused_not_broadcast(loss) -> None:
    with pytest.raises(ValueError, match="same shape"):
        loss(STUDENT, TEACHER[:1])


def test_classes_that_neither_side_gives_mass_add_nothing() -> None:
    s, t = STUDENT.clone(), TEACHER.clone()
    s[:, 0] = t[:, 0] = -torch.inf
    s.requires_grad_()
    value = soft_kl(s, t, temperature=1.0)
    value.sum().backward()
    assert torch.allclose(value, soft_kl(s[:, 1:], t[:, 1:], temperature=1.0))
    assert s.grad[:, 1:].isfinite().all() and js(s[:, 1:], t[:, 1:]).isfinite().all()


def test_a_truncated_teacher_that_keeps_all_classes_teaches_the_same() -> None:
    whole = taught(STUDENT.float(), {"logits": TEACHER.float()}, temperature=2.0)
    topk = taught(STUDENT.float(), {"logits_topk": topk_of(TEACHER.float(), 7, temperature=2.0)}, temperature=2.0)
    assert torch.allclose(whole, topk, atol=1e-5)


def test_token_labels_are_shifted_once_and_masked() -> None:
    logits = torch.randn(2, 4, 5, generator=G)
    labels = torch.tensor([[1, 2, -100, 3], [0, -100, -100, 4]])
    term = label_loss(logits, {"labels": labels})
    expected = [(0, 0, 2), (0, 2, 3), (1, 2, 4)]
    total = sum(-torch.log_softmax(logits[b, t], 0)[y] for b, t, y in expected)
    assert int(term.count) == 3 and torch.allclose(term.sum, total)
    assert cross_entropy(logits, labels)[0, 2] == 0


# -- normalised distillation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.5, 3.0)])
def test_nkd_is_its_definition(gamma: float, temperature: float) -> None:
    got = nkd(STUDENT, TEACHER, LABELS, gamma=gamma, temperature=temperature)
    for i, y in enumerate(LABELS.tolist()):
        target = -softmax(TEACHER[i].tolist(), 1.0)[y] * math.log(softmax(STUDENT[i].tolist(), 1.0)[y])
        s, t = softmax(STUDENT[i].tolist(), temperature), softmax(TEACHER[i].tolist(), temperature)
        others = [(t[k] / (1 - t[y]), s[k] / (1 - s[y])) for k in range(7) if k != y]
        expected = target - gamma * temperature**2 * sum(a * math.log(b) for a, b in others)
        assert got[i].item() == pytest.approx(expected, rel=1e-9)


def test_nkd_pulls_the_other_classes_as_nckd_does() -> None:
    """Cross-entropy and divergence differ by the teacher's entropy alone."""
    gradients = []
    for function in (lambda s: nkd(s, TEACHER, LABELS, gamma=1.0) - nkd(s, TEACHER, LABELS, gamma=0.0), None):
        s = STUDENT.clone().requires_grad_()
        (function(s) if function else nckd(s, TEACHER, LABELS, 1.0)).sum().backward()
        gradients.append(s.grad)
    torch.testing.assert_close(*gradients)


# -- correlations ------------------------------------------------------------------------------------------------------


def pearson(a: list[float], b: list[float]) -> float:
    x, y = ([v - sum(values) / len(values) for v in values] for values in (a, b))
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_relations_are_their_definitions(temperature: float) -> None:
    s, t = ([softmax(row, temperature) for row in z.tolist()] for z in (STUDENT, TEACHER))
    inter = dist_inter(STUDENT, TEACHER, temperature=temperature)
    for i in range(5):
        assert inter[i].item() == pytest.approx(temperature**2 * (1 - pearson(s[i], t[i])), rel=1e-9)
    columns = [1 - pearson([row[k] for row in s], [row[k] for row in t]) for k in range(7)]
    intra = dist_intra(STUDENT, TEACHER, temperature=temperature).mean().item()
    assert intra == pytest.approx(temperature**2 * sum(columns) / 7, rel=1e-9)


def test_dist_asks_for_no_more_than_a_linear_relation() -> None:
    """Probabilities that are a mixture with the uniform ones correlate perfectly, though they diverge."""
    p = torch.softmax(TEACHER, 1)
    mixed = (0.3 * p + 0.7 / 7).log()
    for loss in (dist_inter, dist_intra):
        assert abs(loss(mixed, TEACHER, temperature=1.0).mean()) < 1e-9 < soft_kl(mixed, TEACHER).mean()


def test_correlations_of_what_does_not_vary_are_zero_with_finite_gradients() -> None:
    for loss, shape in ((dist_inter, (3, 4)), (dist_intra, (3, 4)), (dist_intra, (1, 4))):
        flat = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        value = loss(flat, torch.randn(shape, generator=G, dtype=torch.float64))
        value.sum().backward()
        torch.testing.assert_close(value, torch.full((shape[0],), 16.0).double())
        assert flat.grad.isfinite().all()


# -- standardised logits -----------------------------------------------------------------------------------------------


def z_score(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row))
    return [(v - mean) / deviation for v in row]


def test_the_standardised_divergence_is_its_definition() -> None:
    got = standardized_kl(STUDENT, TEACHER, temperature=2.5)
    for i in range(5):
        s, t = (softmax(z_score(z[i].tolist()), 2.5) for z in (STUDENT, TEACHER))
        assert got[i].item() == pytest.approx(2.5**2 * brute_kl(t, s), rel=1e-9)


def test_the_range_of_the_logits_does_not_matter_to_it() -> None:
    moved = 5 * TEACHER + 3
    torch.testing.assert_close(standardized_kl(moved, TEACHER), torch.zeros(5).double(), atol=1e-9, rtol=0)
    flat = torch.ones(2, 4, requires_grad=True)
    standardized(flat).square().sum().backward()
    assert (standardized(flat) == 0).all() and flat.grad.isfinite().all()


# -- temperatures, soft labels, balanced divergences -------------------------------------------------------------------


def test_every_sample_may_have_a_temperature_and_gets_its_gradient() -> None:
    t = torch.tensor([1.0, 2.0, 4.0, 8.0, 20.0], dtype=torch.float64, requires_grad=True)
    got = tempered_kl(STUDENT, TEACHER, t)
    wanted = [soft_kl(STUDENT[i : i + 1], TEACHER[i : i + 1], temperature=t[i].item()) for i in range(5)]
    torch.testing.assert_close(got, torch.cat(wanted))
    assert torch.autograd.gradcheck(lambda x: tempered_kl(STUDENT, TEACHER, x), (t,))
    with pytest.raises(ValueError, match="one temperature for each row"):
        tempered_kl(STUDENT, TEACHER, t[:1])


def test_soft_cross_entropy_is_its_definition() -> None:
    q = torch.softmax(TEACHER, 1)
    got = soft_cross_entropy(STUDENT, q)
    for i in range(5):
        p = softmax(STUDENT[i].tolist(), 1.0)
        assert got[i].item() == pytest.approx(-sum(a * math.log(b) for a, b in zip(q[i].tolist(), p, strict=True)))
    hard = torch.nn.functional.one_hot(LABELS, 7).double()
    torch.testing.assert_close(soft_cross_entropy(STUDENT, hard), cross_entropy(STUDENT, LABELS))


def test_divergences_are_balanced_by_who_is_surer() -> None:
    balance, temperature = 3.0, 1.5
    student = torch.cat([STUDENT[:3], 6 * STUDENT[3:]])
    got, sides = balanced_kl(student, TEACHER, balance=balance, temperature=temperature), set()
    for i in range(5):
        s, t = softmax(student[i].tolist(), temperature), softmax(TEACHER[i].tolist(), temperature)
        h_s, h_t = (-sum(v * math.log(v) for v in p) for p in (s, t))
        u, v = (balance, 1.0) if h_t - h_s > 0 else (1.0, balance)
        sides.add(u > v)
        expected = temperature**2 * (u * brute_kl(t, s) + v * brute_kl(s, t))
        assert got[i].item() == pytest.approx(expected, rel=1e-9)
    assert sides == {True, False}, "the test shows one side alone"


@pytest.mark.parametrize("loss", [dist_inter, dist_intra, standardized_kl, balanced_kl, soft_cross_entropy])
def test_one_row_is_not_broadcast_over_many(loss) -> None:
    with pytest.raises(ValueError, match="same shape"):
        loss(STUDENT, TEACHER[:1])
