"""BOOT: the signal-ODE by its formula, what the exact signal costs, and a network that learns it from noise alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, MEAN, STD, ExactFlow, batch, descend, gaussian, made, student, values


class ExactSignal(nn.Module):
    """``y`` at level ``to`` of the flow of one Gaussian from ``D + sigma eps`` on, exact at ``gain = power = 1``."""

    shape, classes, sigma_data, jumps, floor = (1,), None, STD, True, 0.0

    def __init__(self, gain: float = 1.0, power: float = 1.0) -> None:
        super().__init__()
        self.gain, self.power = nn.Parameter(torch.tensor(gain)), power

    def forward(self, x, sigma, label=None, *, to):
        eps = x / sigma[:, None]
        start = gaussian()(x, sigma) + x
        ratio = torch.sqrt((STD**2 + to**2) / (STD**2 + sigma**2))[:, None] ** self.power
        return MEAN + self.gain * ratio * (start - MEAN) - to[:, None] * eps


def boot(net=None, **args):
    return made("boot", gaussian(), student(net or ExactSignal(), rule="map"), from_teacher=False, **args)


def costs(method) -> dict[str, float]:
    (update,) = method.updates(batch(0, 512), CLOCK)
    return {k: v / 512 for k, v in values(update).items()}


def test_the_exact_signal_costs_nothing_but_the_solvers_error():
    heun, euler, coarse = (costs(boot(**a)) for a in ({"order": "heun"}, {}, {"delta": 0.16}))
    assert heun["boundary"] == pytest.approx(0, abs=1e-8)
    # The last step, to 0, is Euler's for both.
    assert heun["bootstrap"] < 0.5 * euler["bootstrap"]
    assert euler["bootstrap"] < 0.5 * coarse["bootstrap"] < 0.5
    assert costs(boot(ExactSignal(power=0.7)))["bootstrap"] > 5 * euler["bootstrap"]


def test_a_step_is_the_exponential_euler_step_of_the_signal_ode():
    method, law = boot(), gaussian().double()
    eps, y = torch.randn(2, 8, 1, generator=torch.Generator().manual_seed(0)).double()
    now, then = torch.full((8,), 2.0).double(), torch.tensor([1.9, 1.0, 0.5, 0.0] * 2).double()
    target = method.stepped(eps, y, now, then, None)
    log_snr = [-torch.log(s)[:, None] for s in (now, then)]
    estimate = law(y + 2.0 * eps, now)
    torch.testing.assert_close(target.double(), y + (1 - torch.exp(log_snr[0] - log_snr[1])) * (estimate - y))
    # and to first order that of dy / dlog sigma = y - D
    near = method.stepped(eps, y, now, now * (1 - 1e-4), None)
    torch.testing.assert_close((near - y) / 1e-4, estimate - y, rtol=1e-3, atol=1e-3)


def test_only_the_boundary_tells_one_flow_of_the_teacher_from_another():
    """A start nearer to the mean gives a trajectory of the same flow, of which the signal-ODE cannot complain."""
    right, wrong = costs(boot()), costs(boot(ExactSignal(0.7)))
    assert wrong["bootstrap"] <= right["bootstrap"]
    assert right["boundary"] < 1e-8 < 1 < wrong["boundary"]


def test_levels_are_neighbours_down_to_zero():
    now, then = boot(delta=0.1).neighbours(torch.tensor([0.0, 0.05, 0.3, 1.0]))
    method = boot()
    torch.testing.assert_close(now, method.levels(torch.tensor([0.0, 0.05, 0.3, 1.0])))
    torch.testing.assert_close(then, torch.cat([torch.zeros(2), method.levels(torch.tensor([0.2, 0.9]))]))


def test_a_small_network_learns_the_flow_from_noise_alone():
    torch.manual_seed(0)
    net = Block("mlp_denoiser", {"shape": [1], "width": 32, "depth": 1, "sigma_data": 0.5, "jumps": True})
    generator = student(net, rule="map")
    method = made("boot", gaussian(), generator, delta=0.1)
    z = torch.randn(512, 1)
    exact = gaussian().flow(10 * z, 10.0, 0.02)
    before = float((generator(z) - exact).detach().square().mean().sqrt())
    descend(method, 150, lr=2e-2, rows=128)
    after = float((generator(z) - exact).detach().square().mean().sqrt())
    assert after < min(0.15, before / 4)


@pytest.mark.parametrize(("args", "says"), [({"nfe": 2}, "nfe: 1"), ({"rule": "renoise"}, "rule: map")])
def test_a_student_that_cannot_is_refused(args, says):
    with pytest.raises(UserError, match=says):
        made("boot", gaussian(), student(ExactFlow(), **{"rule": "map", **args}), from_teacher=False)
