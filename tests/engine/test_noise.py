"""Noise depends on the sample, not on the batch it sits in."""

from __future__ import annotations

import torch
from scipy import stats

from limbeck.engine.method import Clock
from limbeck.engine.noise import normal, uniform


def test_a_draw_does_not_change_when_the_batch_is_cut() -> None:
    ids = torch.arange(64)
    whole = normal(ids, (3, 2), ("seed", 1))
    assert torch.equal(whole, torch.cat([normal(part, (3, 2), ("seed", 1)) for part in ids.split(7)]))
    assert torch.equal(whole.flip(0), normal(ids.flip(0), (3, 2), ("seed", 1)))


def test_draws_differ_by_step_seed_and_name() -> None:
    ids = torch.arange(8)
    draws = [Clock(s, 10, seed=k).normal(ids, (2,), n) for s in (0, 1) for k in (0, 1) for n in "ab"]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == len(draws)


def test_the_laws_are_right() -> None:
    ids = torch.arange(20_000)
    assert stats.kstest(normal(ids, (1,), "n").double().flatten().numpy(), "norm").pvalue > 1e-3
    u = uniform(ids, (1,), "u").flatten()
    assert stats.kstest(u.double().numpy(), "uniform").pvalue > 1e-3
    assert u.min() >= 0 and u.max() < 1


def test_neighbouring_ids_and_positions_are_uncorrelated() -> None:
    x = normal(torch.arange(20_000), (4,), "c").double()
    pairs = torch.cat([x, x.roll(1, 0)], dim=1)
    off = torch.corrcoef(pairs.T) - torch.eye(8)
    assert off.abs().max() < 0.03
