"""CTM: what the exact jumps cost, which jumps are compared, and where the gradient goes."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from toolkit.diffusion import CLOCK, ExactFlow, batch, descend, gaussian, made, student, values
from toolkit.flows import BentFlow


def ctm(net=None, **args):
    net = ExactFlow() if net is None else net
    return made("ctm", gaussian(), student(net, rule="map"), from_teacher=False, **args)


def costs(method) -> dict[str, float]:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return {k: v / 512 for k, v in values(update).items()}


def test_the_exact_jumps_cost_nothing_but_the_solvers_error():
    exact = costs(ctm(reach=1, solver_steps=4))["trajectory"]
    assert exact < 1e-5
    assert costs(ctm(reach=1, order="euler"))["trajectory"] > 10 * exact
    assert costs(ctm(BentFlow(1.3), reach=1, solver_steps=4))["trajectory"] > 1e-4


def test_levels_are_in_order_and_the_end_may_be_zero():
    t, u, s = ctm(levels=6, reach=2).triple(torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)))
    assert bool((t > u).all() and (u >= s).all())
    grid = ctm().levels(torch.linspace(0, 1, 6))
    place = lambda level: (level[:, None] - grid).abs().argmin(dim=1)  # noqa: E731
    assert set((place(t) - place(u)).tolist()) == {1, 2}
    assert float(u.min()) == pytest.approx(0.02)
    assert not float(s.min())
    assert bool((s == u).any())  # the solver alone may go all the way


def test_both_ends_are_compared_at_level_zero_with_a_gradient_for_the_jump_alone():
    net = BentFlow(1.3)
    method = ctm(net)
    x = torch.randn(8, 1, requires_grad=True)
    s = torch.tensor([0.0] * 4 + [1.0] * 4)
    ended = method.ended(x, s, None)
    torch.testing.assert_close(ended[:4], x[:4])
    torch.testing.assert_close(ended[4:], net(x, s.clamp_min(0.02), to=torch.zeros(8))[4:])
    ended.sum().backward()
    assert net.power.grad is None
    assert net.power.requires_grad
    assert not torch.allclose(x.grad[4:], torch.ones(4, 1))


def test_denoising_is_a_term_of_its_own():
    assert costs(ctm(denoising=0.0)).keys() == {"trajectory"}
    assert costs(ctm())["denoising"] == pytest.approx(0.1, abs=0.1)


def test_descent_comes_to_the_exact_map():
    net = BentFlow(1.4)
    descend(ctm(net, denoising=0.0, reach=2), 40, lr=0.1)
    assert float(net.power.detach()) == pytest.approx(1.0, abs=0.04)


def test_a_network_of_one_level_is_refused():
    with pytest.raises(UserError, match="jumps"):
        made("ctm", gaussian(), student(ExactFlow(), rule="ode"))
