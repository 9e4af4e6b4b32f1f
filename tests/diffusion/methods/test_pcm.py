"""Phased consistency: phases and their ends, what the exact flow costs, and where descent leads."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, MEAN, STD, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


class Phased(BentFlow):
    """Knows the end of the phase that a level is in: the denoiser whose step of DDIM ends there."""

    def __init__(self, edges: tuple[float, ...], power: float = 1.0) -> None:
        super().__init__(power)
        self.edges = edges

    def forward(self, x, sigma, label=None, *, to=None):
        end = torch.zeros_like(sigma)
        for edge in self.edges:  # falling
            end = torch.where((sigma > edge * (1 + 1e-5)) & (end == 0), torch.full_like(end, edge), end)
        return super().forward(x, sigma, to=end)


def pcm(phases=3, net=None, power=1.0, **args):
    if net is None:
        levels = student(BentFlow(), nfe=phases).levels
        net = Phased(levels[1:], power)
    return made("pcm", gaussian(), student(net, rule="ode", nfe=phases), from_teacher=False, **args)


def cost(method) -> float:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return values(update)["consistency"] / 512


def test_neighbours_stay_within_a_phase():
    method = pcm(phases=3, levels=12)
    higher, lower, end = method.neighbours(torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)))
    edges = torch.tensor([*method.edges[:-1], 0.0])  # the last phase ends at 0
    assert sorted(end.unique().tolist()) == pytest.approx(sorted(edges[1:].tolist()))
    start = torch.stack([edges[edges > e].min() if (edges > e).any() else edges[0] for e in end])
    assert bool((higher > lower).all())
    assert bool((lower >= end - 1e-5).all())
    assert bool((higher <= start * (1 + 1e-4)).all())
    assert len(higher.unique()) >= 12


def test_the_exact_phases_cost_nothing_but_the_solvers_error():
    exact = cost(pcm(solver_steps=4))
    assert exact < 1e-5
    assert cost(pcm(power=1.3, solver_steps=4)) > 1e-4
    assert cost(pcm(order="euler")) > 10 * cost(pcm(order="heun"))


def test_a_sample_of_exact_phases_is_the_end_of_the_flow():
    z = torch.linspace(-2, 2, 5)[:, None]
    made_by = pcm().student(z).detach()
    torch.testing.assert_close(made_by, MEAN + STD / (STD**2 + 100) ** 0.5 * (10 * z - MEAN), rtol=1e-3, atol=1e-3)


def test_descent_comes_to_the_exact_phases():
    method = pcm(power=1.4)
    descend(method, 60, lr=0.05)
    assert float(method.student.net.power.detach()) == pytest.approx(1.0, abs=0.05)


def test_a_sampler_with_fresh_noise_is_refused():
    with pytest.raises(UserError, match="rule: ode"):
        made("pcm", gaussian(), student(BentFlow(), rule="renoise", nfe=2))
