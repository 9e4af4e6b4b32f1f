"""Learnable sampler distillation: whose gradient reaches what, and where the coefficients come to rest."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion.discrete import DiscreteSampler, chain, inverse, step_law
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.registry import find
from toolkit.diffusion import CLOCK, batch, descend


def law(kind="uniform", total=4.0):
    return chain(3, 4, 1.5, 0, kind, total).float()


def lsd(steps=3, rule="euler", kind="uniform", scaled="score", total=4.0, **args):
    method = find("method", "lsd").load()(**{"teacher_steps": 24, "trajectories": 32, **args})
    sampler = DiscreteSampler(law(kind, total), steps, rule, scaled)
    teacher = Teacher(law(kind, total), {"concrete_score"}, "teacher")
    method.setup(Parts(student=sampler, teachers={"teacher": teacher}))
    return method


def loss(method, rows=64):
    (update,) = method.updates(batch(0, rows), CLOCK)
    (term,) = update.evaluate().values()
    return term.sum / rows


@pytest.mark.parametrize("args", [{}, {"objective": "moves"}, {"times": True}, {"kind": "absorb"}])
def test_every_step_has_a_gradient_and_the_network_has_none(args):
    method = lsd(**args)
    loss(method).backward()
    gradient = method.sampler.coefficients.grad
    assert gradient is not None and bool(gradient[1:].abs().min() > 0)
    moved = method.sampler.increments.grad
    assert (moved is not None and bool(moved.abs().max() > 0)) == bool(args.get("times"))
    assert not any(p.requires_grad for p in method.sampler.net.parameters())


def test_the_score_objective_is_nothing_for_the_same_sequences_and_the_coefficient_one():
    method = lsd(teacher_steps=3, candidates=1)
    kept = method.kept(CLOCK, torch.device("cpu"))
    times = method.sampler.times()

    def follow(law, u):  # the student goes where the teacher went
        follow.step += 1
        return kept[:, follow.step]

    follow.step = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.diffusion.methods.lsd.inverse", follow)
        found = method.compare(kept[:, 0], kept, torch.arange(32), CLOCK, "here")
        follow.step = 0
        method.sampler.coefficients.data.fill_(1.5)
        other = method.compare(kept[:, 0], kept, torch.arange(32), CLOCK, "here")
    assert len(times) == 4
    assert float(found.detach().abs().max()) < 1e-5 < float(other.detach().mean())


@pytest.mark.parametrize(
    ("rule", "scaled", "total"),
    [("euler", "score", 0.8), ("tau_leaping", "score", 2.5), ("tweedie", "log_score", 0.8)],
)
def test_the_moves_of_one_step_are_learnt_as_their_exact_likelihood_has_them(rule, scaled, total):
    """The coefficient of a step from pure noise, against a search with the exact law of one token."""
    method = lsd(steps=1, rule=rule, scaled=scaled, objective="moves", teacher_steps=24, total=total)
    descend(method, 16, lr=0.1, rows=128)
    sampler, times, model = method.sampler, method.sampler.times(), method.teacher.module
    x = sampler.first(torch.rand(1000, 4, generator=torch.Generator().manual_seed(0)))
    score = model(x, times[0])
    exact = step_law(score, x, times[0], times[1], model.rates, "tweedie")

    @torch.no_grad()
    def cost(value: float) -> float:
        sampler.coefficients.data[0] = value
        made = sampler.law(sampler.scale(score, x, 0), x, 0, times)
        return float(-(exact * made.clamp_min(1e-12).log()).sum(-1).mean())

    learnt = cost(float(sampler.coefficients.detach()))
    grid = [0.1 + 0.02 * k for k in range(146)]
    best = min(grid, key=cost)
    if rule == "tweedie":  # which is exact as it is
        assert best == pytest.approx(1.0, abs=0.03)
        assert learnt < cost(1.0) + 5e-3
    else:
        assert learnt - cost(best) < 0.1 * (cost(1.0) - cost(best))


def test_of_several_starts_the_nearest_counts_and_starts_stay_near():
    method = lsd(candidates=3, radius=1)
    x = method.sampler.first(torch.rand(50, 4))
    near = method.near(x, torch.arange(50), CLOCK, "here")
    assert int((near != x).sum(1).max()) == 1
    assert float(loss(method).detach()) < float(loss(lsd(candidates=1)).detach())


def test_the_teachers_way_ends_at_the_chain():
    method = lsd(teacher_steps=48, trajectories=1500)
    ends = method.kept(Clock(0, 1, seed=0), torch.device("cpu"))[:, -1]
    model = law()
    shares = torch.bincount((ends[:, :-1] * 3 + ends[:, 1:]).flatten(), minlength=9) / (3 * 1500)
    assert float((shares - model.pairs().flatten()).abs().sum()) / 2 < 0.035
    assert inverse(model.start[None], torch.tensor([0.999])).item() == 2


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="objective: score"):
        lsd(objective="moves", times=True)
    method = find("method", "lsd").load()()
    with pytest.raises(UserError, match="discrete_sampler"):
        method.setup(Parts(student=law(), teachers={"teacher": Teacher(law(), {"concrete_score"}, "teacher")}))
