"""Latent consistency: what the exact guided flow costs, the pairs of levels, and adapters that alone learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.guidance import Guided
from limbeck.errors import UserError
from limbeck.registry import Block
from toolkit.diffusion import CLOCK, batch, descend, made, student, values

LAW = mixture.ring(4, 2.0, 0.3, classes=2).float()
FLOOR = 0.02


class Ends(nn.Module):
    """Where the guided flow ends, by 24 steps of Heun with each sample's own level; ``off`` is added to the scale."""

    shape, classes, guided, floor = (2,), 2, True, FLOOR

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off

    def forward(self, x, sigma, label=None, *, scale=None):
        strength = torch.ones_like(sigma) if scale is None else scale
        field = Guided(LAW, (strength + self.off)[:, None])
        ratio = (FLOOR / sigma) ** (1 / 24)
        for k in range(24):
            now, then = ((sigma * ratio ** (k + i))[:, None] for i in (0, 1))
            slope = (x - field(x, now.squeeze(1), label)) / now
            ahead = x + (then - now) * slope
            x = x + (then - now) * (slope + (ahead - field(ahead, then.squeeze(1), label)) / then) / 2
        return x


def lcm(net: nn.Module | None = None, **args):
    generator = FewStep(net, [10.0], sigma_min=FLOOR) if net is not None else student(
        Block("mlp_denoiser", {"width": 16, "classes": 2, "guided": True, "floor": FLOOR})
    )  # fmt: skip
    return made("lcm", LAW, generator, **args)


def cost(net=None, **args) -> float:
    (update,) = lcm(Ends() if net is None else net, **args).updates(batch(0, 128), CLOCK)
    return values(update)["consistency"] / 128


def test_the_exact_guided_flow_costs_nothing_but_the_solvers_error():
    exact = cost(solver_steps=16)
    assert exact < 1e-5
    assert cost(order="euler") > 10 * cost() > 10 * exact
    assert cost(Ends(0.5), solver_steps=16) > 8 * exact
    assert cost(told=False, solver_steps=16) > 20 * exact
    assert cost(told=False, scale_min=1.0, scale_max=1.0, solver_steps=16) < 1e-5


def test_a_pair_is_skip_steps_apart_and_no_level_is_left_out():
    method = lcm(levels=11, skip=3)
    higher, lower = method.neighbours(torch.arange(10) / 10 + 0.05)
    grid = method.levels(torch.arange(11) / 10)
    torch.testing.assert_close(higher, grid[1:])
    torch.testing.assert_close(lower, grid[[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]])


def test_adapters_alone_learn_one_strength():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    base = Block("mlp_denoiser", {"width": 16, "depth": 1, "classes": 2, "floor": FLOOR})
    generator = student(Block("lora", {"base": base, "rank": 2}))
    before = {name: p.clone() for name, p in generator.named_parameters()}
    method = made("lcm", LAW, generator, scale_min=3.0, scale_max=3.0)
    descend(method, 5)
    moved = {name for name, p in generator.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora" in name for name in moved)


@pytest.mark.parametrize(
    ("net", "says"),
    [({"guided": True}, "classes"), ({"classes": 2}, "guided: true"), ({"classes": 2, "guided": True}, "floor")],
)
def test_a_student_that_cannot_is_refused(net, says):
    floor = 0.0 if says == "floor" else FLOOR
    with pytest.raises(UserError, match=says):
        made("lcm", LAW, student(Block("mlp_denoiser", {"width": 8, "floor": floor, **net})))
