"""Divergences from a few tokens of a teacher: against loops in float64, and what each of them teaches."""

import math

import pytest
import torch

from limbeck.language.losses.sparse import naive_topk, narrowed, recalibrated, renormalised_topk, tail_topk
from limbeck.truncated import sampled_cross_entropy, sampled_of, topk_of


def logits_of(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_is_its_formula():
    teacher, student, k = logits_of(5, 9), logits_of(5, 9, seed=1), 3
    topk = topk_of(teacher, k)
    for n in range(5):
        p, q = teacher[n].softmax(-1), student[n].softmax(-1)
        best = p.argsort(descending=True)[:k].tolist()
        mass = sum(p[i] for i in best)
        naive = sum(p[i] * (p[i] / q[i]).log() for i in best)
        renormalised = sum(p[i] / mass * (p[i] / mass / q[i]).log() for i in best)
        rest = (1 - mass) * ((1 - mass) / (1 - sum(q[i] for i in best))).log()
        torch.testing.assert_close(naive_topk(student, topk)[n], naive)
        torch.testing.assert_close(renormalised_topk(student, topk)[n], renormalised)
        torch.testing.assert_close(tail_topk(student, topk)[n], naive + rest)


def learnt(loss, classes=6):
    """The distribution that a student without limits ends at."""
    student = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([student], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(student)
        value.backward()
        return value

    optimizer.step(closure)
    return student.detach().softmax(-1)


def test_only_the_tail_teaches_the_teachers_own_sureness():
    teacher = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, -1.0], dtype=torch.float64)
    p, topk = teacher.softmax(-1), topk_of(teacher, 2)
    tail = learnt(lambda q: tail_topk(q, topk))
    torch.testing.assert_close(tail[:2], p[:2], rtol=1e-4, atol=1e-6)
    for biased in (naive_topk, renormalised_topk):
        sure = learnt(lambda q, loss=biased: loss(q, topk))
        torch.testing.assert_close(sure[:2], p[:2] / p[:2].sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("proposal", [1.0, 0.6])
def test_the_mean_gradient_of_all_draws_is_the_gradient_of_the_whole_divergence(proposal):
    """Two draws of four tokens: all 16 outcomes, each with its probability, and their mean to the last digit."""
    teacher = torch.tensor([1.0, 0.0, -1.0, 0.3], dtype=torch.float64)
    student = torch.tensor([0.2, 0.9, -0.4, 0.0], dtype=torch.float64, requires_grad=True)
    q = (proposal * teacher).softmax(-1)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), q.cumsum(0)])
    middles = (edges[1:] + edges[:-1]) / 2
    mean = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            drawn = sampled_of(teacher, torch.stack([middles[i], middles[j]]), proposal)
            (grad,) = torch.autograd.grad(sampled_cross_entropy(student, drawn), student)
            mean += q[i] * q[j] * grad
    p = teacher.softmax(-1)
    whole = (p * (p.log() - student.log_softmax(-1))).sum()
    torch.testing.assert_close(mean, torch.autograd.grad(whole, student)[0])


def test_draws_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="lead alike"):
        sampled_of(torch.zeros(2, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="between 0 and 2"):
        sampled_of(torch.zeros(2, 4), torch.zeros(2, 5), proposal=3)
    drawn = sampled_of(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="5 classes, the teacher 4"):
        sampled_cross_entropy(torch.zeros(2, 5), drawn)
    with pytest.raises(ValueError, match="leading dimensions"):
        sampled_cross_entropy(torch.zeros(3, 4), drawn)


def test_narrowing_is_cutting_at_once():
    teacher = logits_of(4, 9)
    wide, thin = narrowed(topk_of(teacher, 6), 3), topk_of(teacher, 3)
    assert torch.equal(wide.indices, thin.indices)
    torch.testing.assert_close(wide.logprobs, thin.logprobs)
    torch.testing.assert_close(wide.log_tail, thin.log_tail)
    assert narrowed(thin, 5) is thin


def test_recalibration_is_the_cards_formula():
    topk = topk_of(logits_of(4, 9), 5)
    p = topk.logprobs.exp()
    torch.testing.assert_close(recalibrated(topk, heat=0.3).exp(), (p / 0.3).softmax(-1))
    torch.testing.assert_close(recalibrated(topk, "linear").exp(), p / p.sum(-1, keepdim=True))
    smooth, plain = recalibrated(topk, "smoothing", smoothing=0.1).exp(), p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(smooth[:, 0], plain[:, 0] - 0.1)
    torch.testing.assert_close(smooth[:, 1:], plain[:, 1:] + 0.025)
    sure = topk_of(torch.tensor([[50.0, 0, 0, 0, 0, 0]]), 5)
    assert float(recalibrated(sure, heat=1.0).exp().max()) == pytest.approx(math.e / (math.e + 4), rel=1e-4)
    with pytest.raises(ValueError, match="heat"):
        recalibrated(topk, heat=0.0)
    with pytest.raises(ValueError, match="smoothing"):
        recalibrated(topk, "smoothing", smoothing=1.0)
