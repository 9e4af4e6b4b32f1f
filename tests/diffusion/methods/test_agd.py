"""AGD: trajectories that are made once by the guided base, where it learns, and adapters that come nearer."""

from __future__ import annotations

import torch

from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.visited import visit
from limbeck.engine.method import Clock
from limbeck.registry import Block, build
from toolkit.diffusion import CLOCK, batch, descend, made, student, values

PLAIN = Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5, "classes": 2})


def teacher():
    torch.manual_seed(0)
    return build("model", PLAIN).requires_grad_(False)


def agd(law=None, **args):
    net = Block("guidance_adapter", {"base": PLAIN, "width": 8})
    given = {"trajectories": 64, "trajectory_steps": 5, "pairs": 64, "pair_steps": 4, **args}
    return made("agd", law or teacher(), student(net, scale=3.0), **given)


def unlike(ours) -> None:
    with torch.no_grad():
        for p in ours.learners["student"].net.adapters.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))


def test_trajectories_are_the_teachers_and_made_once():
    law = teacher()
    ours = agd(law)
    unlike(ours)  # of which they know nothing
    x, sigma, label, scale, target = ours.visits(batch(), CLOCK)
    torch.testing.assert_close(target, Guided(law, scale[:, None])(x, sigma, label))
    assert 1 <= float(scale.min()) < 2 < 4 < float(scale.max()) <= 5
    made_once = ours._visited
    grid = {"steps": 5, "sigma_min": 0.02, "sigma_max": 10.0}
    start, classes = ours.pair_start(torch.arange(64), CLOCK.seed)
    again = visit(law, start, classes, made_once[torch.arange(64)]["scale"], **grid)
    torch.testing.assert_close(made_once[torch.arange(64)]["x"], again.x)
    ours.visits(batch(), Clock(7, 10, seed=1))
    assert ours._visited is made_once
    levels = {round(float(s), 4) for s in sigma}
    assert levels == {round(float(s), 4) for s in again.sigma}


def test_a_batch_may_be_cut_and_steps_differ():
    ours = agd()
    whole, part = ours.visits(batch(0, 64), CLOCK), ours.visits(batch(32, 64), CLOCK)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[32:], b)
    assert not torch.equal(ours.visits(batch(), Clock(4, 10, seed=1))[0], whole[0])


def test_the_loss_is_that_of_the_noise_at_the_states_that_are_asked_for():
    for states in ("visited", "noised"):
        ours = agd(states=states)
        unlike(ours)
        (update,) = ours.updates(batch(), CLOCK)
        x, sigma, label, scale, target = (ours.visits if states == "visited" else ours.noised)(batch(), CLOCK)
        answer = ours.network(x, sigma, label, scale=scale)
        eps = [(x - d) / sigma[:, None] for d in (answer, target)]
        by_hand = (eps[0] - eps[1]).square().mean(dim=1).sum()
        assert abs(values(update)["guidance"] / float(by_hand.detach()) - 1) < 1e-2
    (uniform,) = agd(weighting="uniform").updates(batch(), CLOCK)
    (noise,) = agd().updates(batch(), CLOCK)
    assert values(uniform) != values(noise)


def test_adapters_alone_come_nearer_to_the_guided_teacher():
    law = teacher()
    ours = agd(law, weighting="edm")
    x, sigma, label, scale, target = ours.visits(batch(0, 256), CLOCK)

    def error() -> float:
        return float(((ours.network(x, sigma, label, scale=scale) - target) / sigma[:, None]).detach().square().mean())

    before = error()
    descend(ours, 60, lr=3e-2, rows=64)
    assert error() < 0.5 * before
    with ours.alone():
        torch.testing.assert_close(ours.base(x, sigma, label), law(x, sigma, label))
