"""AST: each of its parts by its formula, and none of them where they are off."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.condensation.methods.ast import AST, CLIPPED, balanced, perturbed
from limbeck.condensation.methods.mtt import MTT
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.unroll import Flat, unroll
from limbeck.engine.method import Clock
from toolkit.following import NET, loss, ready

OFF = {"start": "given", "clip": False, "penalty": 0.0, "perturb": 0.0, "balance": False, "between": False}
CPU = torch.device("cpu")


def test_with_all_parts_off_it_is_mtt_but_for_the_experts_rate(data):
    experts = {"expert_momentum": 0.5, "expert_decay": 0.01, "starts": 1}
    one, other = ready(data, AST, **OFF, **experts), ready(data, MTT, **experts)
    # The rate drops from the second half on, which a way of two epochs of four does not see.
    assert loss(one, Clock(1, 4)).item() == loss(other, Clock(1, 4)).item()


def test_the_experts_are_clipped_penalised_and_drop_their_rate(data):
    course = ready(data, AST, penalty=0.2, penalty_of="weights").course()
    assert (course.shares, course.penalty, course.penalty_of) == (CLIPPED, 0.2, "weights")
    assert [course.share(e) for e in (0, 4, 10, 11)] == [0.5, 0.6, 0.9, 1.0]
    assert [course.rate(e) for e in (1, 2)] == pytest.approx([0.1, 0.07])
    assert ready(data, AST, clip=False).course().shares == ()
    assert AST().course().momentum == 0.9


def test_late_starts_count_more_than_early_ones():
    assert balanced(10, 20) == pytest.approx(math.log(8) / math.log(5))
    assert balanced(17, 20) == pytest.approx(math.log(15) / math.log(5))
    assert balanced(3, 20) == pytest.approx(math.log(5) / math.log(15))
    assert [balanced(t, 20) for t in range(20)] == sorted(balanced(t, 20) for t in range(20))


def test_weights_are_moved_by_a_share_of_themselves(data):
    network = fresh_network(NET, data.spec.offers(), 0)
    flat = Flat(network)
    weights = flat.weights(network)
    moved = perturbed(flat, weights, 0.8, (1, 2))
    for w, m in zip(flat.named(weights).values(), flat.named(moved).values(), strict=True):
        share = torch.where(w != 0, (m - w) / w, 0)
        if bool((w != 0).any()) and bool((share != 0).any()):
            assert 0.39 < float(share.norm()) < 0.81
    changed = (moved != weights).float().mean()
    assert 0.3 < changed < 0.6
    assert torch.equal(moved, perturbed(flat, weights, 0.8, (1, 2)))
    assert not torch.equal(moved, perturbed(flat, weights, 0.8, (1, 3)))


@pytest.mark.parametrize(("balance", "perturb"), [(True, 0.0), (False, 0.7), (True, 0.7)])
def test_the_loss_is_the_sum_of_all_stretches(data, balance, perturb):
    parts = {**OFF, "between": True, "balance": balance, "perturb": perturb}
    method, clock = ready(data, AST, **parts, steps=5, ahead=2), Clock(3, 9, seed=4)
    found = loss(method, clock).item()
    expert, epoch = method.segment(clock)
    begin, middle, end = method.expert_weights(clock, expert, [epoch, epoch + 1, epoch + 2], CPU)
    if perturb:
        begin = perturbed(method.flat, begin, perturb, (4, 3))
    plain, factor = method.step_loss(clock), balanced(epoch, 3) if balance else 1.0
    rate = torch.tensor(0.2 * factor)  # a factor of a plain descent's loss is one of its rate
    path = [w.detach() for w in unroll(plain, begin, rate, 5, method.student())]
    expected = sum(
        float((path[at] - to).square().sum() / (begin - to).square().sum()) for at, to in ((2, middle), (5, end))
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_first_images_are_means_or_real_ones_or_as_given(data):
    given = ready(data, AST, start="given").student.images
    mean = ready(data, AST, start="average").student.images
    real = ready(data, AST, start="representative").student.images
    assert torch.allclose(
        mean.view(3, 2, 1, 8, 8).mean(1)[0], data.train.images[data.train.labels == 0].mean(0), atol=0.05
    )
    for image, label in zip(real, torch.arange(3).repeat_interleave(2), strict=True):
        assert (data.train.images[data.train.labels == label] == image).flatten(1).all(1).any()
    assert not torch.equal(given, mean)
