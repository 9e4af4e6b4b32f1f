"""Classifier losses against brute force in float64, and against each other where the papers say they agree."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.losses import cross_entropy, js, kl, label_loss, soft_kl, taught
from limbeck.truncated import topk_of
from limbeck.vision.losses import binary_log_probs, dkd, nckd, tckd

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
